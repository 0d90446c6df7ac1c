"""The address of the HTTP service: its syntax, whether it may be used, and the listening socket.

The service binds the socket when it runs alone. In a pool the arbiter does, before anything is started,
and passes it to each incarnation of the service. So a port in use is reported once at the start, and no
connection is refused while the service restarts.
"""

import errno
import ipaddress
import os
import socket
from collections.abc import Callable
from functools import partial

from supervisor.errors import ConfigError
from supervisor.settings.model import Settings

#: `<descriptor of the socket>,<descriptor of a file>,<number of the process>`. A process that serves writes READY into
#: the file, at the place of its number.
#: Not SUPERVISOR_*: those are settings, and an unknown setting is an error.
HTTP_FDS_VARIABLE = "_SUPERVISOR_HTTP_FDS"
READY = b"1"
BACKLOG = 2048
_PORT_MAX = 65535


def check_bind(settings: Settings) -> None:
    """Raise ConfigError for an address that other machines can reach, unless a token is set."""
    if not settings.api.token and not is_loopback(parse_bind(settings.api.bind)[0]):
        raise ConfigError(
            f"api.bind = {settings.api.bind!r}: anybody who reaches that address could publish;"
            " set api.token (SUPERVISOR_API__TOKEN), or listen on 127.0.0.1"
        )


def pool_bind(settings: Settings) -> str:
    """Return the address of a pool's HTTP service; empty if the pool has none."""
    return settings.api.bind if settings.api.enabled else ""


def parse_bind(bind: str) -> tuple[str, int]:
    """Split `host:port`; brackets around an IPv6 host are removed."""
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(bind: str) -> socket.socket:
    """Return a listening socket. Raises PortInUseError and ConfigError."""
    host, port = parse_bind(bind)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = f"{bind.rpartition(':')[0]}:{port + 1 if port < _PORT_MAX else port - 1}"
            raise PortInUseError(f"{bind} is in use; use --bind {other} or [api] bind") from None
        raise ConfigError(f"api.bind: can't listen on {bind}: {error.strerror or error}") from None
    return listening


class PortInUseError(ConfigError):
    """Another process listens on that address."""


def inherited_socket() -> tuple[socket.socket, Callable[[], object]] | None:
    """Return the socket that the arbiter passed to this process, if any, and what reports that it is served."""
    text = os.environ.pop(HTTP_FDS_VARIABLE, None)
    if text is None:
        return None
    fd, ready_fd, process = map(int, text.split(","))
    for one in (fd, ready_fd):
        os.set_inheritable(one, False)
    return socket.socket(fileno=fd), partial(os.pwrite, ready_fd, READY, process)
