"""Two pools on one Redis, in memory, and the order in which their processes and the network go on."""

import random
from collections.abc import Coroutine, Sequence
from functools import cached_property
from typing import Any

from supervisor.core.ids import parse_id
from supervisor.core.options import Options
from supervisor.keys import (
    RATES_CONSUMER,
    TURNS_CONSUMER,
    replay_key,
)
from tests.model.ghosts import BrokenRuleError, Ghost, Ghosts, Place
from tests.model.group import Group
from tests.model.handlers import Handlers, Kind
from tests.model.limits import OUT, Limits, emits
from tests.model.modelled_pool import Pool
from tests.model.network import Mode, Network
from tests.model.outbox import Outbox
from tests.model.process import Process, Worker
from tests.model.stepped_loop import Clock
from tests.model.watch import WatchedServer

OPTIONS = Options(
    start="0",
    batch_size=3,
    concurrency=3,
    timeout_s=5,
    max_deliveries=3,
    retry_base_s=1,
    retry_max_s=10,
    max_crashes=2,
    hold_ms=100,
    block_ms=5000,
    max_waiting=10,
    circuit_breaker=True,
    run_in="thread",
    max_tasks=0,
)
MESSAGES_MAX = 40
RUN_MAX = 8


class World:
    """All that there is, and what is forbidden while messages change hands."""

    def __init__(self, clock: Clock, chance: random.Random, kinds: Sequence[Kind]) -> None:
        self.clock = clock
        self.chance = chance
        self.stream = "events"
        self.groups = ["g", "h"][: len(kinds)]
        self.options = OPTIONS
        self.server = WatchedServer(self)
        self.network = Network(self.clock, self.server, self.chance)
        self.processes: list[Process] = []
        self.graves: list[Process] = []
        self._newborn: list[tuple[Process, Coroutine[Any, Any, Any]]] = []
        self.ghosts = Ghosts(self)
        self.limits = Limits(self)
        self.kinds = dict(zip(self.groups, kinds, strict=True))
        self.handlers = Handlers(self)
        self.specs_of = {group: self.handlers.spec(group, kind) for group, kind in self.kinds.items()}
        self.specs = list(self.specs_of.values())
        #: (stream, group) of all that is read.
        self.sources = [(key, group) for group in self.groups for key in (self.stream, replay_key(self.stream, group))]
        self.pools = [Pool(self, "a"), Pool(self, "b")]
        self.published = 0
        #: Number of a message -> whether it is poison, and whether it can't be decoded.
        self._planned: dict[int, tuple[bool, bool]] = {}
        #: Number of a message for later -> its member in Redis.
        self._members: dict[int, str] = {}
        #: A message was committed to the outbox: pools have relays from then on.
        self.has_outbox = False
        #: The server has refused something, and it may not have been repeated yet.
        self.has_refused = False
        #: What went wrong where the product catches all that is raised.
        self.broken: BaseException | None = None
        #: What is left of the processes is being cleared away.
        self.over = False
        self._calls = 0
        self.pools[0].start(2)

    @property
    def workers(self) -> list[Worker]:
        return [worker for pool in self.pools for worker in pool.living]

    @cached_property
    def outbox(self) -> Outbox:
        """The database of both pools."""
        return Outbox(self.clock, self.chance)

    def waits(self, group: str) -> bool:
        """Whether handlers of that group can wait for something: a thread's work is one callback here."""
        return self.specs_of[group].is_async

    def waiting_consumers(self, group: str) -> set[bytes]:
        """The consumers that hold what waits for the limits of that group's handler."""
        options = self.specs_of[group].options
        names = {TURNS_CONSUMER: options.has_turns, RATES_CONSUMER: bool(options.rate)}
        return {name.encode() for name, is_used in names.items() if is_used}

    def group(self, stream: str, group: str) -> Group | None:
        held = self.server.streams.get(stream.encode())
        return held.groups.get(group.encode()) if held else None

    def unread(self, stream: str, group: str) -> bool:
        """A read of new entries would be answered at once."""
        held, member = self.server.streams.get(stream.encode()), self.group(stream, group)
        return held is not None and member is not None and next(reversed(held.entries), (0, 0)) > member.last

    def is_open(self, place: Place) -> bool:
        """What is there is unread or pending: a group that was made again does not read what was deleted."""
        stream, group, entry = place
        member, at = self.group(stream, group), parse_id(entry)
        if member is None:
            return False
        return at in member.pending or (at > member.last and at in self.server.streams[stream.encode()].entries)

    def publish(self, *, poison: bool = False, undecodable: bool = False) -> None:
        """One message; `undecodable`: for the group whose handler decodes."""
        if self.published < MESSAGES_MAX and self.network.mode is Mode.NOTHING:
            fields = self._next_fields(poison=poison, undecodable=undecodable)
            self.network.do("XADD", self.stream, "*", *(word for pair in fields.items() for word in pair))

    def _next_fields(self, *, poison: bool, undecodable: bool) -> dict[str, str]:
        """The next message's: its number, and for four of five a key."""
        self.published += 1
        self._planned[self.published] = poison, undecodable
        key = "aabc"[self.published % 5 :][:1]
        return {"n": str(self.published), **({"k": key} if key else {})}

    def added(self, key: str, entry: bytes, pairs: Sequence[bytes]) -> None:
        """An entry was added to a stream. Raises BrokenRuleError."""
        if key not in (OUT, self.stream):
            return
        fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
        if key == OUT:
            self.limits.emitted(fields)
            return
        number = int(fields[b"n"])
        self.limits.published(number)
        poison, undecodable = self._planned[number]
        for group in self.groups:
            ghost = Ghost((group, entry), (key, group, entry), poison, number, fields.get(b"k"))
            ghost.undecodable = undecodable and group == "h"
            self.ghosts.add(ghost)
            self._note_publishing(ghost)

    def _note_publishing(self, ghost: Ghost) -> None:
        spec = self.specs_of[ghost.key[0]]
        returns = self.handlers.returns(ghost.key[0]) and (spec.batch or emits(ghost.number))
        ghost.publishes_first = spec.options.has_turns and returns

    # One thing after the other

    def begin(self, process: Process, body: Coroutine[Any, Any, Any]) -> None:
        """Start it when the present callback is over."""
        self._newborn.append((process, body))

    def step(self, most: int, until_s: float) -> bool:
        """Some callbacks of one process, or one thing that arrives; time goes on, but not beyond `until_s`."""
        ready: list[Process | None] = [process for process in self.processes if process.is_ready]
        if self.network.next_s <= self.clock.now_s:
            ready += [None, None]
        if not ready:
            next_s = min([self.network.next_s, *(process.loop.next_s for process in self.processes if process.runs)])
            if next_s > until_s:
                self.clock.now_s = max(self.clock.now_s, until_s)
                return False
            self.clock.now_s = max(self.clock.now_s, next_s)
            return True
        process = self.chance.choice(ready)
        for _ in range(self.chance.randint(1, min(RUN_MAX, most))):
            if process is None:
                self.network.step()
                break
            process.loop.step()
            if self._newborn or not process.is_ready:
                break
        self._after(process)
        return True

    def _after(self, process: Process | None) -> None:
        while self._newborn:
            newborn, body = self._newborn.pop()
            newborn.start(body)
        if self.broken is not None:
            raise self.broken
        if process is not None and process.alive and process.error is not None:
            raise BrokenRuleError(f"{process.name} ended with {process.error!r}") from process.error
        if self._calls != self.server.calls:
            self._calls = self.server.calls
            self.ghosts.check()

    def run(self, seconds: float) -> None:
        until_s = self.clock.now_s + seconds
        while self.step(RUN_MAX, until_s):
            pass
