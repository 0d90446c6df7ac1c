"""Coroutines that are run by hand: each stops at its next round trip to Redis, and the world says how it goes on.

So the real code of the product that only awaits its wire (`OwnList`, `Reaper`, the lease) runs in the model as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from redis.exceptions import ConnectionError as LostError
from redis.exceptions import RedisError, ResponseError

from supervisor.broker.scripts import Script
from tests.model.commands import Argument
from tests.model.server import Server

Command = tuple[Argument, ...]


class Fault(Enum):
    """What happens to a connection in the middle of a round trip."""

    #: Nothing was executed.
    BEFORE = 1
    #: Everything was, and the answer is lost.
    AFTER = 2
    #: Of a pipeline the first half was.
    MIDWAY = 3


@dataclass
class Trip:
    """A round trip: the commands of a pipeline."""

    commands: Sequence[Command]

    def __await__(self) -> Generator[Trip, list[Any], list[Any]]:
        return (yield self)


@dataclass
class Until:
    """Waits for something that others bring about."""

    condition: Callable[[], Any]

    def __await__(self) -> Generator[Until, Any, None]:
        if not self.condition():
            yield self


@dataclass
class Task:
    """One coroutine of a process."""

    work: Coroutine[Any, Any, None]
    over: bool = False
    #: It ended with an error of Redis, and so does its process.
    failed: bool = False
    waits: Trip | Until | None = field(default=None)

    def __post_init__(self) -> None:
        self._go(self.work.send, None)

    @property
    def ready(self) -> bool:
        """It could go on."""
        return not self.over and (isinstance(self.waits, Trip) or bool(self.waits is None or self.waits.condition()))

    @property
    def travels(self) -> bool:
        """Its next step is a round trip."""
        return not self.over and isinstance(self.waits, Trip)

    def step(self, server: Server, fault: Fault | None = None) -> None:
        """Go on to the next stop."""
        if not isinstance(self.waits, Trip):
            self._go(self.work.send, None)
            return
        commands = self.waits.commands
        if fault is Fault.BEFORE:
            commands = ()
        elif fault is Fault.MIDWAY:
            commands = commands[: len(commands) // 2]
        replies = [_executed(server, command) for command in commands]
        if fault is None:
            self._go(self.work.send, replies)
        else:
            self._go(self.work.throw, LostError("the connection was lost"))

    def interrupt(self, error: BaseException) -> None:
        """Have the wait end with an error."""
        self._go(self.work.throw, error)

    def drop(self) -> None:
        """Its process is dead: nothing of it runs any more, not even a `finally`."""
        self.over = True
        GRAVEYARD.append(self.work)

    def _go(self, how: Callable[[Any], Any], what: Any) -> None:
        try:
            self.waits = how(what)
        except StopIteration:
            self.over = True
        except (RedisError, OSError):
            self.over = self.failed = True


#: A coroutine that is collected runs its `finally`, which a killed process does not: they are kept until the end.
GRAVEYARD: list[Coroutine[Any, Any, None]] = []


def _executed(server: Server, command: Command) -> Any:
    try:
        return server.call(*command)
    except ResponseError as error:
        return error


async def ask(*command: Argument) -> Any:
    """One command. Raises ResponseError, and LostError for a lost connection."""
    (reply,) = await Trip([command])
    if isinstance(reply, Exception):
        raise reply
    return reply


class Wire:
    """As `broker.wire.Wire`."""

    async def call(self, *command: Argument) -> Any:
        return await ask(*command)

    async def script(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:
        return await ask("EVAL", script.text, len(keys), *keys, *arguments)


class Reader:
    """As `broker.wire.BlockingReader`, for reads that are answered at once."""

    def __init__(self, stream: str, group: str, consumer: str) -> None:
        self._head = ("XREADGROUP", "GROUP", group, consumer, "COUNT")
        self._stream = stream
        self._command: Command = ()

    async def send(self, count: int, *, start: str = ">", slack_s: float = 0) -> None:
        self._command = (*self._head, count, "STREAMS", self._stream, start)

    async def receive(self) -> list[list[Any]]:
        reply = await ask(*self._command)
        return reply[0][1] if reply else []


class Pipeline:
    """Of `redis.asyncio.client.Pipeline`, what the keeper uses."""

    def __init__(self) -> None:
        self._commands: list[Command] = []

    def exists(self, key: str) -> None:
        self._commands.append(("EXISTS", key))

    async def execute(self) -> list[Any]:
        return await Trip(self._commands) if self._commands else []


class Client:
    """Of `redis.asyncio.Redis`, what the keeper uses."""

    async def eval(self, text: str, numkeys: int, *rest: Argument) -> Any:
        return await ask("EVAL", text, numkeys, *rest)

    async def xinfo_consumers(self, stream: str, group: str) -> Any:
        return [
            {key.decode(): value for key, value in row.items()}
            for row in await ask("XINFO", "CONSUMERS", stream, group)
        ]

    async def info(self, section: str) -> Any:
        return await ask("INFO", section)

    async def exists(self, key: str) -> Any:
        return await ask("EXISTS", key)

    def pipeline(self, *, transaction: bool) -> Pipeline:
        assert not transaction, "the model knows none"
        return Pipeline()

    async def hset(self, key: str, name: str, value: Argument) -> Any:
        return await ask("HSET", key, name, value)

    async def hmget(self, key: str, names: Sequence[str]) -> Any:
        return await ask("HMGET", key, *names)

    async def hkeys(self, key: str) -> Any:
        return await ask("HKEYS", key)

    async def hdel(self, key: str, *names: str) -> Any:
        return await ask("HDEL", key, *names)
