"""The address of the HTTP service: its syntax, whether it may be used, and the listening sockets.

The service binds the sockets when it runs alone. In a pool the arbiter does, before anything is started,
and passes it to each incarnation of the service. So a port in use is reported once at the start, and no
connection is refused while the service restarts.
"""

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Sequence
from functools import partial

from supervisor.errors import ConfigError
from supervisor.settings.api_tokens import read_tokens
from supervisor.settings.model import Settings
from supervisor.unix_path import socket_path

#: `<descriptors of the sockets>,<descriptor of a file>,<number of the process>`. A process that serves writes READY
#: into the file, at the place of its number.
#: Not SUPERVISOR_*: those are settings, and an unknown setting is an error.
HTTP_FDS_VARIABLE = "_SUPERVISOR_HTTP_FDS"
READY = b"1"
BACKLOG = 2048
_PORT_MAX = 65535
_UNIX = "unix:"
_LOCALHOST = "localhost"
#: What `localhost` means (RFC 6761, 6.3), whatever the resolver knows. The second may be missing on a machine.
_LOOPBACK = (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")
_NO_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def check_bind(settings: Settings) -> None:
    """Raise ConfigError for an address that other machines can reach, unless a long token is set.

    Raises ConfigError for a file of a token that can't be used, too.
    """
    tokens = read_tokens(settings.api)
    if not is_public(settings.api.bind):
        return
    if not tokens.operator:
        raise ConfigError(
            f"api.bind = {settings.api.bind!r}: anybody who reaches that address could publish;"
            " set api.token (SUPERVISOR_API__TOKEN), or listen on 127.0.0.1"
        )
    tokens.require_strong()


def is_public(bind: str) -> bool:
    """Return whether other machines can reach that address."""
    return not is_unix(bind) and not is_loopback(parse_bind(bind)[0])


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
        return host == _LOCALHOST


def is_unix(bind: str) -> bool:
    """Return whether the address is the path of a unix socket."""
    return bind.startswith(_UNIX)


def url_of(bind: str) -> str:
    """Return the address for people to read."""
    return bind if is_unix(bind) else f"http://{bind}"


def listen(bind: str) -> list[socket.socket]:
    """Return the listening sockets: two for `localhost`. Raises PortInUseError and ConfigError."""
    listening: list[socket.socket] = []
    try:
        if is_unix(bind):
            return [_listen_unix(bind.removeprefix(_UNIX))]
        host, port = parse_bind(bind)
        for family, address in _addresses(host, port):
            try:
                listening.append(_listen_tcp(family, address))
            except OSError as error:
                if not listening or error.errno not in _NO_FAMILY:
                    raise
    except OSError as error:
        close(listening)
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(f"{bind} is in use; use {_another(bind)}") from None
        raise ConfigError(f"api.bind: can't listen on {bind}: {error.strerror or error}") from None
    return listening


def close(listening: Sequence[socket.socket], bind: str = "") -> None:
    """Close the sockets. `bind`: nothing listens there any more, so the file of a unix socket is removed."""
    for one in listening:
        one.close()
    if is_unix(bind):
        with contextlib.suppress(OSError):
            os.unlink(bind.removeprefix(_UNIX))


def _addresses(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
    if host == _LOCALHOST:
        return [(family, (address, port)) for family, address in _LOOPBACK]
    family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return [(family, sockaddr)]  # type: ignore[list-item]


def _listen_tcp(family: int, address: tuple[str, int]) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _listen_unix(path: str) -> socket.socket:
    """Listen at the path. A socket that nobody listens on is replaced."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "there is a file that is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, socket_path(path) as short:
            try:
                probe.connect(short)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_path(path) as short:
            listening.bind(short)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _another(bind: str) -> str:
    if is_unix(bind):
        return "another --bind or [api] bind"
    port = parse_bind(bind)[1]
    return f"--bind {bind.rpartition(':')[0]}:{port + 1 if port < _PORT_MAX else port - 1} or [api] bind"


class PortInUseError(ConfigError):
    """Another process listens on that address."""


def inherited_sockets() -> tuple[list[socket.socket], Callable[[], object], int] | None:
    """Return what the arbiter passed to this process: sockets, what reports that they are served, and its number.

    None where it passed nothing.
    """
    text = os.environ.pop(HTTP_FDS_VARIABLE, None)
    if text is None:
        return None
    *fds, ready_fd, process = map(int, text.split(","))
    for one in (*fds, ready_fd):
        os.set_inheritable(one, False)
    return [socket.socket(fileno=fd) for fd in fds], partial(os.pwrite, ready_fd, READY, process), process
