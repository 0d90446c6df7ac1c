"""The arbiter's side of the control socket: accepts, reads, answers, and never waits for a client.

1. Only the owner can open the socket file, from the moment it exists; the peer's user is checked as well.
2. Clients that are slow, silent, or send or request too much are disconnected.

`handle` is called for each command and answers at once.
"""

import contextlib
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from supervisor.control.protocol import ANSWER_BYTES_MAX, LINE_BYTES_MAX, decode_request, encode
from supervisor.errors import ConfigError, SupervisorError
from supervisor.settings.paths import PoolPaths
from supervisor.unix_path import fits_socket, socket_path

CLIENTS_MAX = 8
#: A client is disconnected if it neither completes a request nor reads its answer for this long.
PATIENCE_S = 2.0
NOT_ALLOWED = "the pool belongs to another user: only that user and root may ask it"

#: (command, arguments) -> the data of the answer
Handle = Callable[[str, dict[str, Any]], dict[str, Any]]


class Watcher(Protocol):
    """The part of the arbiter's loop that is needed here."""

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback` with the events of `fd`; watching again replaces both."""

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`."""


def listen(paths: PoolPaths) -> socket.socket:
    """Bind the control socket. The caller holds the pool's lock, so an existing file is a leftover.

    Raises ConfigError.
    """
    path = paths.control
    try:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            # Before bind, so that the file never exists with wider permissions; macOS ignores this one.
            with contextlib.suppress(OSError):
                os.fchmod(listener.fileno(), 0o600)
            with socket_path(_listed(paths)) as bound:
                listener.bind(bound)
            path.chmod(0o600)
            listener.listen(CLIENTS_MAX)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(f"state_dir: {paths.state_dir}: the control socket: {error.strerror}") from None
    return listener


def _listed(paths: PoolPaths) -> Path:
    """Return the socket's path for people, as the kernel will list it, if it fits and leads to the same folder."""
    path = paths.state_dir / paths.control.name
    with contextlib.suppress(OSError):
        if fits_socket(path) and path.parent.samefile(paths.control.parent):
            return path
    return paths.control


class Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = bytearray()
        self.to_send = bytearray()
        self.touched_s = time.monotonic()


class ControlServer:
    """Serves the control socket in the arbiter's loop."""

    def __init__(self, listener: socket.socket, paths: PoolPaths, loop: Watcher, handle: Handle) -> None:
        """`handle(cmd, args)` returns the data of the answer; its SupervisorError becomes the error."""
        self.listener = listener
        self._paths, self._path = paths, paths.control
        self._loop = loop
        self._handle = handle
        self._inode = _inode(self._path)
        self._clients: dict[int, Client] = {}
        loop.watch(listener.fileno(), selectors.EVENT_READ, self._accept)

    def fds(self) -> list[int]:
        """Return the descriptors that a forked child has to close."""
        return [self.listener.fileno(), *self._clients]

    def tidy(self) -> None:
        """Disconnect clients that timed out and restore a deleted socket; called regularly."""
        limit_s = time.monotonic() - PATIENCE_S
        for client in [c for c in self._clients.values() if c.touched_s < limit_s]:
            self._drop(client)
        if not _inode(self._path):
            self._restore_socket()
        self._loop.watch(self.listener.fileno(), selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Disconnect all clients and remove the socket file if it is still this server's."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._loop.unwatch(self.listener.fileno())
        self.listener.close()
        if self._inode and _inode(self._path) == self._inode:
            self._path.unlink(missing_ok=True)

    def _restore_socket(self) -> None:
        """Bind the socket again after its file was deleted, for example by a cleaner of temporary folders."""
        with contextlib.suppress(ConfigError):  # retried at the next call
            listener = listen(self._paths)
            self._loop.unwatch(self.listener.fileno())
            self.listener.close()
            self.listener, self._inode = listener, _inode(self._path)

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no free descriptor; the waiting client would wake the loop again and again until `tidy`
            if self._clients:
                self._drop(next(iter(self._clients.values())))
            else:
                self._loop.unwatch(self.listener.fileno())
            return
        if not _is_allowed(connection):
            with contextlib.suppress(OSError):
                connection.send(encode({"ok": False, "error": NOT_ALLOWED}), socket.MSG_DONTWAIT)
            connection.close()
            return
        if len(self._clients) >= CLIENTS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        client = Client(connection)
        self._clients[connection.fileno()] = client
        self._loop.watch(connection.fileno(), selectors.EVENT_READ, lambda events: self._serve(client, events))

    def _serve(self, client: Client, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not self._receive(client):
                self._drop(client)
                return
            self._flush(client)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _receive(self, client: Client) -> bool:
        """Read what has arrived and answer complete lines; return False to disconnect the client."""
        chunk = client.connection.recv(LINE_BYTES_MAX)
        client.received += chunk
        while (end := client.received.find(b"\n")) >= 0:
            line = bytes(client.received[:end])
            del client.received[: end + 1]
            client.touched_s = time.monotonic()
            client.to_send += self._answer(line)
            if len(client.to_send) > ANSWER_BYTES_MAX:
                return False
        return bool(chunk) and len(client.received) < LINE_BYTES_MAX

    def _answer(self, line: bytes) -> bytes:
        try:
            cmd, arguments = decode_request(line)
            return encode({"ok": True, "data": self._handle(cmd, arguments)})
        except SupervisorError as error:
            return encode({"ok": False, "error": str(error)})
        except Exception as error:
            # Whatever a client sends must not end the pool.
            return encode({"ok": False, "error": f"internal error: {error!r}"})

    def _flush(self, client: Client) -> None:
        fd = client.connection.fileno()
        while client.to_send:
            try:
                sent = client.connection.send(client.to_send)
            except BlockingIOError:
                self._loop.watch(fd, selectors.EVENT_READ | selectors.EVENT_WRITE, lambda e: self._serve(client, e))
                return
            del client.to_send[:sent]
            client.touched_s = time.monotonic()
        self._loop.watch(fd, selectors.EVENT_READ, lambda events: self._serve(client, events))

    def _drop(self, client: Client) -> None:
        fd = client.connection.fileno()
        if self._clients.pop(fd, None) is not None:
            self._loop.unwatch(fd)
        client.connection.close()


def _is_allowed(connection: socket.socket) -> bool:
    """Allow root and the pool's own user; without SO_PEERCRED the mode of the file has to be enough."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
