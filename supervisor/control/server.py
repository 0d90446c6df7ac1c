"""The arbiter's side of the control socket: accepts, reads, answers, and never waits for a client.

1. The socket file is there only for its owner, from the moment it exists; the peer's user is checked.
2. A client that is slow, silent, greedy or talks nonsense is hung up on.

What a command does is not its business: `handle` is called for each and answers at once.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from supervisor.control.protocol import ANSWER_BYTES_MAX, LINE_BYTES_MAX, decode_request, encode
from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS_MAX = 8
#: A client that neither sends a whole request nor takes its answer for this long is dropped.
PATIENCE_S = 2.0


#: (command, arguments) -> what to answer
Handle = Callable[[str, dict[str, Any]], dict[str, Any]]


class Watcher(Protocol):
    """The part of the arbiter's loop that is needed here."""

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events of `fd`; watching again changes the events."""

    def unwatch(self, fd: int) -> None:
        """Forget `fd`."""


def listen(path: Path) -> socket.socket:
    """Bind the control socket. The caller holds the pool's lock, so what is at `path` is a leftover.

    Raises OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    # Before bind, so that it never exists with wider rights; macOS only obeys the second.
    with contextlib.suppress(OSError):
        os.fchmod(listener.fileno(), 0o600)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(CLIENTS_MAX)
    return listener


class Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        """Counts its patience from now."""
        self.connection = connection
        self.received = bytearray()
        self.to_send = bytearray()
        self.touched_s = time.monotonic()


class ControlServer:
    """Serves the control socket within somebody else's loop."""

    def __init__(self, listener: socket.socket, path: Path, loop: Watcher, handle: Handle) -> None:
        """`handle(cmd, args)` gives the data to answer; its SupervisorError becomes the error."""
        self.listener = listener
        self._path = path
        self._loop = loop
        self._handle = handle
        self._inode = _inode(path)
        self._clients: dict[int, Client] = {}
        loop.watch(listener.fileno(), selectors.EVENT_READ, self._accept)

    def fds(self) -> list[int]:
        """What a forked child has to close."""
        return [self.listener.fileno(), *self._clients]

    def tidy(self) -> None:
        """Hang up on those who had their time, and see that the socket is there; to be called now and then."""
        limit_s = time.monotonic() - PATIENCE_S
        for client in [c for c in self._clients.values() if c.touched_s < limit_s]:
            self._drop(client)
        if not _inode(self._path):
            self._listen_anew()
        self._loop.watch(self.listener.fileno(), selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Hang up on all, and remove the socket if it is still ours."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._loop.unwatch(self.listener.fileno())
        self.listener.close()
        if self._inode and _inode(self._path) == self._inode:
            self._path.unlink(missing_ok=True)

    def _listen_anew(self) -> None:
        """Somebody has deleted the socket, as cleaners of temporary folders do: nobody could steer the pool."""
        with contextlib.suppress(OSError):  # the next time, then
            listener = listen(self._path)
            self._loop.unwatch(self.listener.fileno())
            self.listener.close()
            self.listener, self._inode = listener, _inode(self._path)

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor left: who waits would wake the loop again and again, so that waits for `tidy`
            if self._clients:
                self._drop(next(iter(self._clients.values())))
            else:
                self._loop.unwatch(self.listener.fileno())
            return
        if len(self._clients) >= CLIENTS_MAX or not _is_allowed(connection):
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
        """Read what is there and answer whole lines; False when the client is to go."""
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
            # The client is told, the loop goes on: whatever a client sends must not end the pool.
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
    """Root and the pool's own user; where the system can't tell, the socket's mode has to do."""
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
