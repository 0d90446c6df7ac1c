"""Two pools on one Redis, in memory, and what is watched there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from supervisor.core.options import Options
from supervisor.keeper.lease import LEASE_MS
from supervisor.keys import host_key
from supervisor.worker.delivery import Delivery
from tests.model.consumer import CONCURRENCY, Consumer
from tests.model.ghosts import BrokenRuleError, Ghosts
from tests.model.pool import SLOTS, Pool
from tests.model.server import Server
from tests.model.tasks import Fault, Task
from tests.model.worker import Worker

OPTIONS = Options(
    start="0",
    batch_size=CONCURRENCY,
    concurrency=CONCURRENCY,
    timeout_s=60,
    max_deliveries=3,
    retry_base_s=1,
    retry_max_s=10,
    max_crashes=2,
    hold_ms=100,
    block_ms=5000,
    max_waiting=10,
)


class State:
    """Everything that there is, and what is forbidden while messages change hands."""

    def __init__(self, groups: int = 1) -> None:
        self.stream = "events"
        self.groups = ["g", "h"][:groups]
        self.options = OPTIONS
        self.server = Server()
        self.server.deleted = self._deleted
        self.ghosts = Ghosts(self)
        self.pools = [Pool(self, "a"), Pool(self, "b")]
        self.published = 0
        for group in self.groups:
            self.server.call("XGROUP", "CREATE", self.stream, group, "0", "MKSTREAM")
        self._watch_claims()
        self._watch_records()
        with self.time():
            self.pools[0].start(2)

    @property
    def now_ms(self) -> int:
        return self.server.now_ms

    def unread(self, stream: str, group: str) -> bool:
        """A read of new entries would be answered at once."""
        held = self.server.streams[stream.encode()]
        newest = next(reversed(held.entries), (0, 0))
        return newest > held.groups[group.encode()].last

    @property
    def workers(self) -> list[Worker]:
        return [worker for pool in self.pools for worker in pool.living]

    @contextmanager
    def time(self) -> Iterator[None]:
        """Inside, the product's clocks show this world's time."""
        clock: Any = SimpleNamespace(monotonic=lambda: self.now_ms / 1000, time=lambda: self.now_ms / 1000)
        with (
            mock.patch("supervisor.keeper.reaper.time", clock),
            mock.patch("supervisor.keeper.lease.time", clock),
            mock.patch("supervisor.keeper.redis_continuity.time", clock),
            mock.patch("supervisor.worker.own.time", clock),
            mock.patch("supervisor.keeper.reaper.SLOTS_MAX", SLOTS),
        ):
            yield

    # What a worker tells

    def began(self, consumer: Consumer, delivery: Delivery) -> None:
        self.ghosts.began(consumer.worker, consumer.group, delivery.id, delivery.failed_before)

    def _deleted(self, group: bytes, consumer: bytes, lost: int) -> None:
        if lost:
            raise BrokenRuleError(f"{consumer!r} was deleted with {lost} pending")

    def step(self, pool: Pool, task: Task, fault: Fault | None = None) -> None:
        if task is pool.keeper and 0 < pool.look_until_ms < self.now_ms:
            task.interrupt(TimeoutError())
            return
        fault = Fault.BEFORE if pool.cut_off and task.travels else fault
        if task is pool.keeper and fault is not None:
            pool.seen_since_ms = self.now_ms
        task.step(self.server, fault)

    def go_on(self) -> None:
        """What needs no round trip takes no time."""
        while local := [(pool, task) for pool in self.pools for task in pool.tasks if not task.travels]:
            for pool, task in local:
                if task.ready and not task.travels:
                    self.step(pool, task)
            self._reap_those_that_left()
        self._reap_those_that_left()

    def _reap_those_that_left(self) -> None:
        for worker in self.workers:
            failed = any(task.failed for task in worker.tasks)
            if (worker.left or failed) and not worker.pool.frozen:
                self.ghosts.died(worker)
                worker.pool.gone(worker, crashed=failed)

    def _watch_claims(self) -> None:
        """A message may be taken from a living worker only when its host had no lease for a time since it has it."""
        claim = self.server._commands[b"XCLAIM"]

        def watched(key: bytes, group: bytes, consumer: bytes, *rest: bytes) -> Any:
            pending = self.server.streams[key].groups[group].pending
            before = {entry: held.consumer for entry, held in pending.items()}
            reply = claim(key, group, consumer, *rest)
            for entry, owner in before.items():
                if entry not in pending:
                    self.ghosts.of[group.decode(), b"%d-%d" % entry].dropped = True
                elif pending[entry].consumer != owner:
                    self._changed_hands(group.decode(), entry, owner, consumer)
                    ghost = self.ghosts.of[group.decode(), b"%d-%d" % entry]
                    ghost.forgiven += ghost.explosions > 0  # the marks stay behind
            return reply

        self.server._commands[b"XCLAIM"] = watched

    def _watch_records(self) -> None:
        """What Redis keeps of failed attempts is not to be forgotten."""
        for name, script in list(self.server._scripts.items()):
            if script == self.server._retry_later:
                self.server._scripts[name] = self._recorded

    def _recorded(self, keys: list[bytes], arguments: list[bytes]) -> int:
        written = self.server._retry_later(keys, arguments)
        ghost = self.ghosts.of[arguments[0].decode(), arguments[1]]
        due_ms = int(arguments[2].split(b":")[1])
        ghost.kept = ghost.failures.get(due_ms, 0) if written else ghost.kept
        return written

    def _changed_hands(self, group: str, entry: tuple[int, int], owner: bytes, heir: bytes) -> None:
        taker = next(pool for pool in self.pools if heir.decode().startswith(pool.name + ":"))
        for pool in self.pools:
            if pool.up and owner.decode().startswith(pool.name + ":") and pool is not taker:
                self.ghosts.blur(owner)  # its next incarnation may find only a part of what the dead one had in hand
            for worker in pool.living:
                if worker.name.encode() == owner and self.server.call("GET", host_key(pool.name)) is None:
                    ghost = self.ghosts.of[group, b"%d-%d" % entry]
                    if pool is not taker and self.now_ms - taker.seen_since_ms < LEASE_MS:
                        raise BrokenRuleError(f"{entry} was taken by a keeper that had not seen Redis for a lease")
                    ghost.torn = True
                    ghost.forgiven += 2  # it runs on both hosts, and the marks of the first are not those of the second
