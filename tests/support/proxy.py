"""A proxy between a test and its server that delays, resets and swallows as networks do.

1. It listens on a loopback port (only TCP can be reset) and passes on to any Redis URL, also of a unix socket.
2. `Faults` holds for all connections that fit it, old and new; `cut`, `reset` and `swallow` act on what is open now.
3. `did` counts what was done, so that a test can show that its fault happened.

It runs on a loop and a thread of its own: a test that blocks, or its loop, does not slow it down.
"""

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

_NAME = re.compile(rb"SETNAME\r\n\$\d+\r\n([^\r]+)\r\n", re.IGNORECASE)
_CHUNK = 65_536
#: What may be under way in one direction, in chunks, before the sender has to wait.
_UNDER_WAY = 64
#: Turns of the loop until nothing of a connection that was accepted or closed is still to come.
_TURNS = 5
REQUEST, REPLY = "request", "reply"


@dataclass(frozen=True)
class Faults:
    """How bytes travel. The default is a perfect network."""

    #: One way, and by which share it varies.
    latency_s: float = 0.0
    jitter: float = 0.0
    #: Nothing is passed on in larger pieces; 0: as it comes.
    slice_bytes: int = 0
    bytes_per_s: float = 0.0
    #: Accept, and drop all bytes silently; a connection that lost some never recovers.
    black_hole: bool = False
    #: Reset each new connection.
    refuse: bool = False
    #: Reset a connection after this many more bytes have passed in this direction; 0: never.
    reset_after: int = 0
    reset_in: str = REPLY
    #: Which connections the faults apply to.
    fits: Callable[["Connection"], bool] = lambda _: True


@dataclass(eq=False)
class Connection:
    """An accepted connection."""

    #: From 0, in the order of arrival.
    number: int
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    #: As CLIENT SETNAME gave it.
    name: str = ""
    #: Bytes that were passed on, by direction.
    passed: Counter[str] = field(default_factory=Counter)
    #: It has lost bytes, and passes none on any more.
    swallowed: bool = False


class Proxy:
    """`with Proxy(server.url) as proxy:` and `proxy.url` instead of the server's."""

    def __init__(self, upstream: str) -> None:
        """Listen at once; the server is looked up again for each connection."""
        self.upstream = upstream
        self.did: Counter[str] = Counter()
        self._faults = Faults()
        self._open: list[Connection] = []
        #: The sockets that were ever used. One with unsent bytes for a frozen process stays open after `close`.
        self._ends: set[asyncio.StreamWriter] = set()
        self._numbers = 0
        self._closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._do(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def set(self, **faults: Any) -> None:
        """Set the faults from now on, see `Faults`; without arguments, none."""
        self._faults = Faults(**faults)

    def connections(self, name: str = "") -> list[Connection]:
        """The open connections with this name; without a name, all."""
        return [connection for connection in self._open if not name or connection.name == name]

    def cut(self, name: str = "") -> int:
        """End connections properly (FIN); how many."""
        return int(self._do(self._end(name, "cut")))

    def reset(self, name: str = "") -> int:
        """End connections with RST; how many."""
        return int(self._do(self._end(name, "reset")))

    def swallow(self, name: str = "") -> int:
        """Make a black hole of connections for good, while new ones work; how many."""
        return int(self._do(self._swallow(name)))

    def close(self) -> None:
        """End everything."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # On the proxy's own loop

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_CHUNK)

    def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self._closing:
            _reset(client)
            return
        self.did["accepted"] += 1
        serving = self._spawn(self._serve(reader, client))
        # A task that is cancelled before its first step runs no `finally`.
        serving.add_done_callback(lambda task: _reset(client) if task.cancelled() else None)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self._faults.refuse:
            self.did["refused"] += 1
            _reset(client)
            return
        try:
            answers, server = await self._to_server()
        except OSError:
            self.did["unreachable"] += 1
            _reset(client)
            return
        connection = Connection(self._numbers, client, server)
        self._ends.update((client, server))
        self._numbers += 1
        self._open.append(connection)
        pumps = [
            self._spawn(self._pump(connection, REQUEST, reader, server)),
            self._spawn(self._pump(connection, REPLY, answers, client)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            while connection.swallowed:
                await asyncio.sleep(0.05)  # neither end hears of the other's
        finally:
            for pump in pumps:
                pump.cancel()
            self._drop(connection)

    async def _to_server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.upstream)
        if parts.scheme == "unix":
            return await asyncio.open_unix_connection(parts.path)
        return await asyncio.open_connection(parts.hostname, parts.port)

    async def _pump(
        self, connection: Connection, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)
        delivering = self._spawn(self._deliver(connection, way, under_way, writer))
        try:
            while data := await reader.read(_CHUNK):
                if way == REQUEST and not connection.name and (found := _NAME.search(data)):
                    connection.name = found[1].decode()
                faults = self._faults_of(connection)
                if faults.black_hole or connection.swallowed:
                    connection.swallowed = True
                    self.did["swallowed bytes"] += len(data)
                    continue
                delay_s = faults.latency_s * (1 + faults.jitter * random.uniform(-1, 1))
                if delay_s:
                    self.did["delayed"] += 1
                await under_way.put((self._loop.time() + delay_s, data))
            await under_way.put((self._loop.time(), b""))
            await delivering
        except OSError:
            pass
        finally:
            delivering.cancel()

    async def _deliver(
        self, connection: Connection, way: str, under_way: asyncio.Queue[tuple[float, bytes]], writer: Any
    ) -> None:
        while True:
            due_s, data = await under_way.get()
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            if not data:
                return
            faults = self._faults_of(connection)
            size = faults.slice_bytes or len(data)
            for at in range(0, len(data), size):
                part = data[at : at + size]
                if faults.reset_after and way == faults.reset_in:
                    left = faults.reset_after - connection.passed[way]
                    if left < len(part):
                        writer.write(part[: max(0, left)])
                        await self._end_one(connection, "reset in the middle")
                        return
                writer.write(part)
                connection.passed[way] += len(part)
                if faults.slice_bytes:
                    self.did["slices"] += 1
                    await asyncio.sleep(0)
                if faults.bytes_per_s:
                    await asyncio.sleep(len(part) / faults.bytes_per_s)
            with contextlib.suppress(OSError):
                await writer.drain()

    def _faults_of(self, connection: Connection) -> Faults:
        faults = self._faults
        return faults if faults.fits(connection) else Faults()

    async def _end(self, name: str, how: str) -> int:
        found = self.connections(name)
        for connection in found:
            await self._end_one(connection, how)
        return len(found)

    async def _end_one(self, connection: Connection, how: str) -> None:
        self.did[how] += 1
        connection.swallowed = False
        if how.startswith("reset"):
            _reset(connection.client)
        self._drop(connection)

    async def _swallow(self, name: str) -> int:
        found = self.connections(name)
        for connection in found:
            connection.swallowed = True
            self.did["swallowed"] += 1
        return len(found)

    def _drop(self, connection: Connection) -> None:
        connection.client.close()
        connection.server.close()
        if connection in self._open:
            self._open.remove(connection)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _close(self) -> None:
        self._closing = True
        self._server.close()
        # A connection that was accepted just before is handed to `_accept` only in a later turn of the loop.
        for _ in range(_TURNS):
            await self._end("", "cut")
            for task in self._tasks:
                task.cancel()
            # asyncio's own tasks hand over what was accepted; a cancelled one would leave its socket open.
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
            await asyncio.sleep(0)
        for end in self._ends:
            end.transport.abort()
        await asyncio.sleep(0)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close it with RST: what is unsent is thrown away."""
    own: socket.socket | None = writer.get_extra_info("socket")
    if own is not None:
        with contextlib.suppress(OSError):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
