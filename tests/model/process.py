"""The processes of a pool: the product's own bodies of a worker and of a keeper, each on a loop of its own.

What they take from the machine is replaced: time, chance, connections and the log (`in_this_world`).
"""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import supervisor.broker
import supervisor.keeper
import supervisor.outbox
import supervisor.worker
from supervisor import publisher
from supervisor.broker import command_connection, group_reader, pipeline_connection
from supervisor.broker.command_connection import CommandConnection
from supervisor.keeper import keeper, reaper
from supervisor.outbox import relay
from supervisor.shared_consumer import SharedConsumer
from supervisor.shared_state import SlotField
from supervisor.worker import process as worker_process
from supervisor.worker.consumer import Consumer
from supervisor.worker.runtime import Runtime
from tests.model.commands import Argument
from tests.model.network import Connection, Link, Loss
from tests.model.stepped_loop import Clock, Loop

if TYPE_CHECKING:
    from supervisor.core.outcome import Crash
    from tests.model.modelled_pool import Pool

#: Enough to shrink and to grow.
SLOTS = 3


class Process:
    """A process; each of its callbacks is run from outside."""

    def __init__(self, pool: Pool, name: str) -> None:
        self.pool = pool
        self.name = name
        self.alive = True
        #: In the order in which they were made.
        self.links: dict[Link, None] = {}
        self.loop = Loop(pool.world.clock, pool.world.chance)
        self.loop.process = self  # type: ignore[attr-defined]
        #: What it would lose by being collected: a killed process runs no `finally`.
        self.unfinished: set[asyncio.Task[Any]] = set()
        #: Key of the marks in Redis of what runs alone -> the last that was sent there.
        self.sent_marks: dict[str, bytes] = {}
        pool.world.processes.append(self)

    def start(self, body: Coroutine[Any, Any, Any]) -> None:
        """Begin; signals are heard from now on."""
        if not self.alive:
            body.close()
            return
        self.main = self.loop.create_task(body)
        self.loop.step()

    @property
    def is_ready(self) -> bool:
        """Its next callback can run now."""
        return self.alive and not self.pool.frozen and self.loop.is_ready

    @property
    def runs(self) -> bool:
        """Time goes on for it."""
        return self.alive and not self.pool.frozen

    @property
    def left(self) -> bool:
        """Its body has ended by itself."""
        return self.alive and self.main.done()

    @property
    def error(self) -> BaseException | None:
        """What ended its body."""
        return self.main.exception() if self.main.done() and not self.main.cancelled() else None

    def terminate(self) -> None:
        """SIGTERM."""
        self.loop.call_soon(self.loop.signals[signal.SIGTERM])

    def end(self, *, with_host: bool = False) -> None:
        """Nothing of it runs any more."""
        if not self.alive:
            return
        self.alive = False
        self.unfinished = asyncio.all_tasks(self.loop)
        self.pool.world.processes.remove(self)
        self.pool.world.graves.append(self)
        for link in list(self.links):
            link.vanish() if with_host else link.hang_up()


class Worker(Process):
    """The process in a slot."""

    def __init__(self, pool: Pool, slot: int) -> None:
        super().__init__(pool, f"{pool.name}:{slot}")
        self.slot = slot
        self.words = pool.shared.slot(slot)
        self.stopping = False
        self.runtime: Runtime | None = None
        #: When a handler of it has ended last.
        self.busy_s = 0.0
        #: It only hands over what its predecessor could not.
        self.only_hands_over = bool(self.words.get(SlotField.HANDOVER_TO))
        self.began_s = pool.world.clock.now_s
        self.drained_s = 0.0

    def body(self, crash: Crash | None) -> Coroutine[Any, Any, int]:
        """What it does; `crash` is how its predecessor ended."""
        shared: Any = self.pool.shared
        return worker_process._main(
            self.pool.settings, self.pool.world.specs, shared, self.slot, self.pool.burst, crash
        )

    def drain(self) -> None:
        """Leave when all that is in hand is done."""
        self.stopping = True
        self.drained_s = self.pool.world.clock.now_s
        self.terminate()

    def lose_reads(self) -> None:
        """Lose the connections over which it waits for messages."""
        for link in [link for link in self.links if link.blocked]:
            link.lose(Loss.BEFORE)

    @property
    def in_hand(self) -> list[tuple[str, str, bytes]]:
        """Where what its executors have is from."""
        messages = [message for of in self._consumers for message in of.executor.messages()]
        return [(message.origin.key, message.group, message.entry) for message in messages]  # type: ignore[attr-defined]

    @property
    def is_opening(self) -> bool:
        """What its predecessor died of is being sorted out."""
        return not self._consumers or self.runtime._with_suspects > 0 or not self.runtime._all_opened

    @property
    def may_charge(self) -> bool:
        """What its predecessor died of may be under way to Redis: it is charged at most once."""
        return self.is_opening and bool(self.words.get(SlotField.ISOLATING))

    @property
    def is_idle(self) -> bool:
        """All that it had is done and confirmed."""
        if self.is_opening or self.in_hand or any(len(of.retries) for of in self._consumers):
            return False
        return self.is_confirmed

    @property
    def waits_for_redis(self) -> bool:
        """Some of it can't go on before Redis answers again."""
        return any(of.waits_for_redis for of in self._consumers)

    @property
    def is_confirmed(self) -> bool:
        """All that was decided is written."""
        if any(of._settler.backlog for of in self._consumers):  # one with turns keeps some of it itself
            return False
        return all(settler._idle.is_set() and not settler._refused for settler in self.runtime.settlers)

    @property
    def waiting(self) -> list[tuple[tuple[str, str, bytes], int]]:
        """What waits for a retry, and how often it failed."""
        messages = [message for of in self._consumers for message in of.retries.messages()]
        return [((message.origin.key, message.group, message.entry), message.failures) for message in messages]  # type: ignore[attr-defined]

    @property
    def with_turns(self) -> list[tuple[str, str, bytes]]:
        """Where those are from that have their turns here, also suspects that did not run yet."""
        gates = [gate for of in self._consumers if (gate := getattr(of, "_turns", None)) is not None]
        held = [item for gate in gates for item in gate._held.items()]
        return [(source.key, source.group, entry) for source, entries in held for entry in entries]

    @property
    def opened_rows(self) -> list[SharedConsumer]:
        """The marks that are its own, and not a predecessor's that it has not looked at yet."""
        lists = [item for of in self._consumers for item in of._pending.items()]
        return [source.marks for source, pending in lists if pending.opened]

    @property
    def leaves_its_work(self) -> bool:
        """It cancels what runs, at its end."""
        return any(of.executor._aborting for of in self._consumers)

    @property
    def _consumers(self) -> list[Consumer]:
        return self.runtime.consumers if self.runtime is not None else []


class Pipeline:
    """Of `redis.asyncio.client.Pipeline`, what the keeper uses."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keys: list[str] = []

    def exists(self, key: str) -> None:
        self._keys.append(key)

    async def execute(self) -> list[Any]:
        return [await self._client.exists(key) for key in self._keys]


class Client:
    """Of `redis.asyncio.Redis`, what the keeper uses."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._ask = CommandConnection("redis://model").call

    async def eval(self, text: str, numkeys: int, *rest: Argument) -> Any:
        return await self._ask("EVAL", text, numkeys, *rest)

    async def xinfo_consumers(self, stream: str, group: str) -> Any:
        rows = await self._ask("XINFO", "CONSUMERS", stream, group)
        return [{key.decode(): value for key, value in row.items()} for row in rows]

    async def info(self, section: str) -> Any:
        return await self._ask("INFO", section)

    async def exists(self, key: str) -> Any:
        return await self._ask("EXISTS", key)

    def pipeline(self, *, transaction: bool) -> Pipeline:
        assert not transaction, "the model knows none"
        return Pipeline(self)

    async def hset(self, key: str, name: str, value: Argument) -> Any:
        return await self._ask("HSET", key, name, value)

    async def hmget(self, key: str, names: Sequence[str]) -> Any:
        return await self._ask("HMGET", key, *names)

    async def hgetall(self, key: str) -> Any:
        return await self._ask("HGETALL", key)

    async def hkeys(self, key: str) -> Any:
        return await self._ask("HKEYS", key)

    async def hdel(self, key: str, *names: str | bytes) -> Any:
        return await self._ask("HDEL", key, *names)

    async def aclose(self) -> None:
        """Its connection ends with its process."""


class Silent:
    """A logger, or the log of faults, that nobody reads."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, _: str) -> Any:
        return self


def this_process() -> Any:
    """The process that runs now."""
    return asyncio.get_running_loop().process  # type: ignore[attr-defined]


def _connection(*_: Any, name: str = "", **__: Any) -> Connection:
    process = this_process()
    return Connection(process.pool.world.network, process, name)


async def _never_closed(_: Any) -> AsyncIterator[None]:
    """A process that is killed closes nothing."""
    yield


def _database(_: str) -> Any:
    return this_process().pool.world.outbox


def _runtime(*arguments: Any, **named: Any) -> Runtime:
    process = this_process()
    process.runtime = Runtime(*arguments, **named)
    return process.runtime


def _modules() -> list[Any]:
    names = []
    for package in (supervisor.broker, supervisor.keeper, supervisor.outbox, supervisor.worker):
        names += [f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
    for name in names:
        importlib.import_module(name)
    return [sys.modules[name] for name in names]


_MONOTONIC = (time.monotonic, time.monotonic_ns)
#: (module, name, what is there) of all that is time or chance in the product.
_MACHINE = [
    (module, name, value)
    for module in _modules()
    for name, value in vars(module).items()
    if any(value is one for one in (time, random, *_MONOTONIC))
]


@contextmanager
def in_this_world(clock: Clock, chance: random.Random) -> Iterator[None]:
    """Inside, the product's processes are those of the model."""
    put: list[tuple[Any, str, Any]] = []
    for module, name, value in _MACHINE:
        if value in _MONOTONIC:
            put.append((module, name, getattr(clock, value.__name__)))
        else:
            put.append((module, name, clock if value is time else chance))
    put += [(module, "connection", _connection) for module in (group_reader, command_connection, pipeline_connection)]
    put += [(worker_process, "Runtime", _runtime), (worker_process, "FaultLog", Silent)]
    put += [(worker_process, "worker_logger", Silent), (keeper, "service_logger", Silent), (keeper, "client", Client)]
    put += [(keeper, "FaultLog", Silent), (reaper, "SLOTS_MAX", SLOTS)]
    put += [(relay, "Database", _database), (relay, "FaultLog", Silent), (relay, "service_logger", Silent)]
    put += [(relay, "POLL_S", 0.5)]  # fewer callbacks
    put += [(publisher, "_closed_with_its_loop", _never_closed)]
    before = [(module, name, getattr(module, name)) for module, name, _ in put]
    for module, name, value in put:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
