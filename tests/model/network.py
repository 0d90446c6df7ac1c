"""Connections of processes to the server in memory: each way takes some time, and either may be lost.

`Connection` is what `broker.connect.connection` makes, so that the product's readers and connections are the real ones.
The server does what it gets from one client in order, one command at a time, and what others send comes in between.
"""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import count
from typing import Any

import hiredis
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as LostError

from tests.model.commands import Argument, flat
from tests.model.ghosts import BrokenRuleError
from tests.model.server import READS, Server
from tests.model.stepped_loop import Clock

#: A server does not notice at once that a client is gone whose host is.
_NOTICED_S_MAX = 12.0
_REFUSED_S = 0.05
_UNREACHABLE_S = 0.5
#: Longer than anybody waits for an answer.
_STALLED_S = 6.0
#: What a full server refuses; in a script only until it has written something.
_NEED_MEMORY = frozenset({b"XADD", b"HSET", b"HINCRBY", b"SADD", b"SET", b"ZADD"})


class Loss(Enum):
    """What becomes of what is under way when a connection is lost."""

    #: The server has not got it.
    BEFORE = 1
    #: The server does it all, and its answers are lost.
    AFTER = 2
    #: The server does half of it.
    MIDWAY = 3
    #: The connection stays, and nothing comes for longer than anybody waits.
    STALLED = 4


class Mode(Enum):
    """What the server refuses for now."""

    NOTHING = 0
    OOM = 1
    READONLY = 2
    LOADING = 3


class Network:
    """All connections, and what is under way on them."""

    def __init__(self, clock: Clock, server: Server, chance: random.Random) -> None:
        self.clock = clock
        self.server = server
        self.server.refuse = self._refuse_write
        self.chance = chance
        self.mode = Mode.NOTHING
        self.links: dict[int, Link] = {}
        self._numbers = count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        #: Whose command is executed.
        self.sender: Any = None

    @property
    def next_s(self) -> float:
        """When something arrives."""
        return self._events[0][0] if self._events else float("inf")

    def step(self) -> None:
        """Have one thing arrive."""
        heapq.heappop(self._events)[2]()

    def at(self, when_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), event))

    def delay_s(self) -> float:
        """Of one way: rarely long."""
        kind = self.chance.random()
        return self.chance.random() * (0.001 if kind < 0.9 else 0.02 if kind < 0.99 else 0.3)

    def restart(self) -> None:
        """The server starts again with its data; it counts its clients from 1."""
        for link in list(self.links.values()):
            link.end()
        self.server.starts += 1
        self.server.known.clear()
        self._numbers = count(1)

    async def dial(self, process: Any, name: str) -> "Link":
        """Raises ConnectionError."""
        await asyncio.sleep(self.delay_s())
        if process.pool.cut_off:
            await asyncio.sleep(_UNREACHABLE_S)
            raise LostError("unreachable")
        return Link(self, process, next(self._numbers), name)

    def do(self, *command: Argument) -> Any:
        """A command, at once; it may be what blocked reads wait for. Raises ResponseError."""
        self._refuse(command)
        self.server.now_ms = self.clock.now_ms
        try:
            return self.server.call(*command)
        finally:
            for link in [link for link in self.links.values() if link.blocked]:
                link.look()

    def _refuse(self, command: tuple[Argument, ...]) -> None:
        name, *rest = map(flat, command)
        if self.mode is Mode.LOADING and name != b"PING":
            raise BusyLoadingError("Redis is loading the dataset in memory")
        if name == b"HINCRBY" and self.mode in (Mode.OOM, Mode.READONLY):
            self.sender.pool.world.ghosts.forgive()  # a crash is not charged
        if name not in (b"EVAL", b"EVALSHA"):
            self._refuse_write((name, *rest), False)

    def _refuse_write(self, words: Sequence[bytes], has_written: bool) -> None:
        if self.mode is Mode.READONLY and words[0] not in READS:
            raise ReadOnlyError("You can't write against a read only replica.")
        needs_memory = words[0] in _NEED_MEMORY or words[:2] == (b"XGROUP", b"CREATE")
        if self.mode is Mode.OOM and needs_memory and not has_written:
            raise OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")


class Link:
    """One TCP connection."""

    def __init__(self, network: Network, process: Any, number: int, name: str) -> None:
        self._network = network
        self._loop = asyncio.get_running_loop()
        self.process = process
        self.number = number
        self.name = name
        self._replies: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        #: The client has lost it; the server does not get or give any more.
        self._lost = self._deaf = self._mute = False
        self._sent_s = self._answered_s = network.clock.now_s
        self._commands: deque[tuple[bytes, ...]] = deque()
        self._left: int | None = None
        self._is_serving = False
        #: The group of which it has read new entries.
        self.reads = b""
        #: The read that waits for entries at the server, and its number.
        self.blocked: tuple[bytes, ...] | None = None
        self._blocks = count(1)
        self._block = 0
        network.links[number] = self
        process.links[self] = None

    # The client's side

    def send(self, packed: Any) -> None:
        """Raises ConnectionError."""
        if self._lost:
            raise LostError("Connection closed by server.")
        reader = hiredis.Reader()
        for part in [packed] if isinstance(packed, bytes) else packed:
            reader.feed(part)
        commands = []
        while command := reader.gets():
            commands.append(tuple(command))
            if command[0] in (b"HSET", b"HDEL") and command[1].endswith(b":alone"):
                self.process.sent_marks[command[1].decode()] = command[3] if command[0] == b"HSET" else b""
        self._sent_s = max(self._sent_s, self._network.clock.now_s + self._network.delay_s())
        self._network.at(self._sent_s, lambda: self._arrived(commands))

    async def receive(self) -> Any:
        """Raises ConnectionError."""
        while not self._replies:
            if self._lost:
                raise LostError("Connection closed by server.")
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._replies.popleft()

    def hang_up(self) -> None:
        """The client closes it, or its process is gone; what was sent arrives."""
        self.process.links.pop(self, None)
        self._mute = True
        if self._lost:  # the server does not hear of it, or knows
            return
        if self.process.pool.cut_off:
            self._forget_later()
        else:
            self._sent_s = max(self._sent_s, self._network.clock.now_s + self._network.delay_s())
            self._network.at(self._sent_s, self._closed)

    def vanish(self) -> None:
        """Its host is gone: the server does not hear of it."""
        self._mute = self._deaf = True
        self._forget_later()

    def lose(self, how: Loss) -> None:
        """A fault of the network, which the server does not notice for a time."""
        if how is Loss.STALLED:
            self._sent_s += _STALLED_S * (self._network.chance.random() < 0.5)
            self._answered_s = max(self._answered_s, self._network.clock.now_s + _STALLED_S)
            return
        self._mute = True
        if how is Loss.BEFORE:
            self._deaf = True
            self._commands.clear()
        elif how is Loss.MIDWAY:
            self._left = 1
        self._forget_later()
        self._notice()

    def _forget_later(self) -> None:
        noticed_s = self._network.clock.now_s + self._network.chance.random() * _NOTICED_S_MAX
        self._network.at(noticed_s, self._closed)

    def _notice(self) -> None:
        self._lost = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The server's side

    def end(self) -> None:
        """The server closes it."""
        self._closed()
        self._network.at(self._network.clock.now_s + self._network.delay_s(), self._notice)

    def look(self) -> None:
        """Something has changed at the server that the blocked read may wait for."""
        if self.blocked is not None:
            try:
                reply = self._network.server.call(*self.blocked)
            except ResponseError as error:
                reply = error
            if reply is not None:
                self._check_delivery(self.blocked, reply)
                self.unblock(reply)

    def unblock(self, reply: Any = None) -> None:
        """The blocked read is answered."""
        self.blocked = None
        self._answer(reply)
        self._serve()

    def _arrived(self, commands: list[tuple[bytes, ...]]) -> None:
        if not self._deaf:
            if self.blocked is not None:
                raise BrokenRuleError(f"{commands[0][0]!r} was sent behind a read that blocks: it can't be ended")
            self._commands.extend(commands)
            if not self._is_serving:
                self._serve()

    def _serve(self) -> None:
        """Do the next command; what others have sent may come between it and the one after."""
        self._is_serving = False
        if self.blocked is not None or not self._commands:
            return
        command = self._commands.popleft()
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self._commands.clear()
                return
        self._do(command)
        if self._commands:
            self._is_serving = True
            self._network.at(self._network.clock.now_s + self._network.chance.random() * 5e-5, self._serve)

    def _do(self, command: tuple[bytes, ...]) -> None:
        self._network.sender = self.process
        try:
            reply = self._network_command(command) if command[0] == b"CLIENT" else self._network.do(*command)
        except RedisError as error:
            reply = error
        self._check_delivery(command, reply)
        if reply is None and b"BLOCK" in command:
            if self._commands:
                raise BrokenRuleError(f"{self._commands[0][0]!r} was sent behind a read that blocks: it can't be ended")
            self.blocked, self._block = command, next(self._blocks)
            block, block_ms = self._block, int(command[command.index(b"BLOCK") + 1])
            self._network.at(self._network.clock.now_s + block_ms / 1000, lambda: self._block_ends(block))
        else:
            self._answer(reply)

    def _check_delivery(self, command: tuple[bytes, ...], reply: Any) -> None:
        """A consumer that reads over a new connection must not be given entries over the one before."""
        if command[0] != b"XREADGROUP" or command[-1] != b">" or isinstance(reply, Exception):
            return
        self.reads = command[2]
        later = [
            link
            for link in self._network.links.values()
            if link.process is self.process and link.reads == self.reads and link.number > self.number
        ]
        if reply and later:
            raise BrokenRuleError(f"{self.name} is given entries over a connection that it has replaced")

    def _block_ends(self, block: int) -> None:
        if self.blocked is not None and self._block == block:
            self.unblock()

    def _network_command(self, command: tuple[bytes, ...]) -> Any:
        verb = command[1]
        if verb == b"ID":
            return self.number
        other = self._network.links.get(int(command[-1]))
        if verb == b"LIST":
            return b"id=%d name=%s age=1" % (other.number, other.name.encode()) if other else b""
        if verb == b"KILL":
            if other:
                other.end()
            return int(other is not None)
        assert verb == b"UNBLOCK", verb
        if other is None or other.blocked is None:
            return 0
        other.unblock()
        return 1

    def _answer(self, reply: Any) -> None:
        clock = self._network.clock
        self._answered_s = max(self._answered_s, clock.now_s + self._network.delay_s())
        self._network.at(self._answered_s, lambda: self._replied(reply))

    def _replied(self, reply: Any) -> None:
        if self._mute or self._lost:
            return
        self._replies.append(reply)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _closed(self) -> None:
        self._deaf, self.blocked = True, None
        self._commands.clear()
        if self._network.links.get(self.number) is self:
            del self._network.links[self.number]


class Connection:
    """As redis-py's `AbstractConnection`, as far as the product drives one by hand."""

    host, port = "model", 6379
    #: It shows a loss when something is sent, and not before.
    _reader = _writer = None

    def __init__(self, network: Network, process: Any, name: str) -> None:
        self._network = network
        self.process = process
        self._name = name
        self._link: Link | None = None

    @property
    def is_connected(self) -> bool:
        return self._link is not None

    async def connect(self) -> None:
        if self._link is None:
            self._link = await self._network.dial(self.process, self._name)

    async def disconnect(self, nowait: bool = False) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.hang_up()

    async def send_packed_command(self, packed: Any, check_health: bool = True) -> None:
        if self._link is None:
            raise LostError("not connected")
        self._link.send(packed)

    async def read_response(
        self, disable_decoding: bool = False, timeout: float | None = None, disconnect_on_error: bool = True
    ) -> Any:
        if self._link is None:
            raise LostError("not connected")
        try:
            reply = await self._link.receive()
        except BaseException:
            if disconnect_on_error:
                await self.disconnect()
            raise
        if isinstance(reply, LostError):  # so it takes LOADING
            await self.disconnect()
        if isinstance(reply, Exception):
            raise reply
        return reply
