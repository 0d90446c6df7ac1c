"""One pool on one host: its arbiter as far as messages depend on it, its keeper and its workers.

Workers and keeper are the real ones; the arbiter's part follows `arbiter/worker_group.py`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from supervisor.core.outcome import Crash
from supervisor.keeper import keeper
from supervisor.keeper.lease import take
from supervisor.outbox import relay
from supervisor.settings.model import Settings
from supervisor.shared_state import HEADER_FIELDS, SLOT_STRIDE, HeaderField, SharedSlot, SlotField
from tests.model.process import SLOTS, Client, Process, Worker

if TYPE_CHECKING:
    from tests.model.world import World

_CHECK_S = 0.25
_FORK_S_MAX = 0.1
_LATE_S = 1.0
#: By then, a worker that was frozen too has ended what is out of time.
_PATIENCE_S = 3.0
_KILLED = Crash("signal", "SIGKILL", None, "")


class SharedState:
    """As `SharedState`, in plain memory and with few slots."""

    def __init__(self) -> None:
        self._words = memoryview(bytearray((HEADER_FIELDS + SLOTS * SLOT_STRIDE) * 8)).cast("Q")

    def get(self, word: HeaderField) -> int:
        return int(self._words[word])

    def set(self, word: HeaderField, value: int) -> None:
        self._words[word] = value

    def slot(self, slot: int) -> SharedSlot:
        return SharedSlot(self._words, slot)


class Pool:
    """What one `supervisor start` has under it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        #: Kept in its state directory: the same for each start.
        self.token = f"token of {name}"
        self.settings = Settings(redis={"url": "redis://model"}, pool={"host": name})
        self.up = self.stopping = False
        #: Nothing of it runs (a machine that sleeps, SIGSTOP), or nothing of it reaches Redis.
        self.frozen = self.cut_off = False
        self.workers: dict[int, Worker | None] = {}
        self.arbiter: Process | None = None
        self.keeper: Process | None = None
        #: It runs when there is an outbox.
        self.relay: Process | None = None
        #: Slots that crashed or were not started yet, and are to be started; how each ended last.
        self.due: set[int] = set()
        self.keeper_told = False
        self._crashes: dict[int, Crash | None] = {}
        #: When the arbiter has looked at its children last, and until when it kills none for being late.
        self._checked_s = self._patient_until_s = 0.0
        #: As in `arbiter.worker_group`.
        self._handing_over: set[int] = set()
        #: When something last disturbed it, and since when it pauses.
        self.disturbed_s = 0.0
        self.paused_s: float | None = None
        self.resumed_s = 0.0
        #: When its lease was last renewed.
        self.leased_s = 0.0
        #: Since when its keeper has seen Redis without a break, at best.
        self.seen_since_s = 0.0

    @property
    def size(self) -> int:
        return self.shared.get(HeaderField.WORKERS)

    @property
    def living(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker is not None] if self.up else []

    @property
    def obeys(self) -> bool:
        """An operator can reach its arbiter, which does what it is told."""
        return self.up and not self.frozen and not self.stopping and self.keeper is not None

    def start(self, size: int, *, burst: bool = False) -> None:
        """`burst`: its workers leave when nothing is left to do, and so does it."""
        self.burst = burst
        self.shared = SharedState()
        self.shared.set(HeaderField.WORKERS, size)
        self.up, self.stopping, self.frozen, self.cut_off, self.paused_s = True, False, False, False, None
        self.workers, self.due, self._crashes = dict.fromkeys(range(SLOTS)), set(), {}
        self.keeper, self._checked_s = None, self.world.clock.now_s
        self.arbiter = Process(self, f"{self.name}: arbiter")
        self.arbiter.start(self._supervise(size))

    def disturb(self, for_s: float = 0) -> None:
        """Something happened for which time may be lost."""
        self.disturbed_s = max(self.disturbed_s, self.world.clock.now_s + for_s)

    async def _supervise(self, size: int) -> None:
        """Take the lease as the boot check does; then see to the children."""
        try:
            await take(Client(), self.name, self.token)  # type: ignore[arg-type]
        except (RedisError, OSError):
            self._down()
            return
        if not self.stopping:
            self.due = set(range(size))
            self.start_keeper()
        while self.up:
            await asyncio.sleep(self.world.chance.random() * _FORK_S_MAX if self.due else _CHECK_S)
            self._check()

    def start_keeper(self) -> None:
        """A keeper begins, in place of one that is killed."""
        if self.keeper is not None:
            self.keeper.end()
        self.seen_since_s = self.world.clock.now_s
        self._start_keeper()

    def _start_keeper(self) -> None:
        shared: Any = self.shared
        self.keeper = Process(self, f"{self.name}: keeper")
        # A callback can't begin in another one's process.
        body = keeper._main(self.settings, self.world.specs, shared, self.token)
        self.world.begin(self.keeper, body)

    def start_relay(self) -> None:
        """A relay begins, in place of one that is killed."""
        if self.relay is not None:
            self.relay.end()
        shared: Any = self.shared
        self.relay = Process(self, f"{self.name}: relay")
        token = f"{self.token} {self.world.chance.random()}"
        body = relay._main(self.settings, shared, token)
        self.world.begin(self.relay, body)

    def _check(self) -> None:
        now_s = self.world.clock.now_s
        if now_s - self._checked_s > _LATE_S:  # it was frozen: the workers get time to go on
            self._patient_until_s = now_s + _PATIENCE_S
        self._checked_s = now_s
        for worker in self.living:
            self.world.ghosts.check_waiting(worker)
            deadline_s = worker.words.get(SlotField.DEADLINE_NS) / 1e9
            if worker.left:
                self.gone(worker, crashed=False)
            elif 0 < deadline_s < now_s and now_s > self._patient_until_s:
                self.world.ghosts.overdue(worker)
                self.gone(worker, crashed=True)
        self._start_due()
        if self.burst and not self.stopping and not self.living and not self.due:
            self.stop()
        if self.stopping and not self.living:
            self._end_keeper()

    def _start_due(self) -> None:
        if self.due:
            self._spawn(min(self.due))
        elif self.world.has_outbox and self.relay is None and not self.stopping:
            self.start_relay()

    def _end_keeper(self) -> None:
        if self.keeper is None or self.keeper.left:
            self._down()
        elif not self.keeper_told:
            self.keeper_told = True
            self.keeper.terminate()

    def _down(self) -> None:
        self.up, self.keeper = False, None
        self._end_relay()
        self.world.ghosts.forgive()
        if self.world.has_refused:  # the keeper could not remove the marks of a worker that was killed
            self.world.ghosts.marks_stay(self)
        for slot in self.workers:
            self.world.ghosts.unsuspect(f"{self.name}:{slot}")

    def _spawn(self, slot: int) -> None:
        words = self.shared.slot(slot)
        words.reset_for_new_worker()
        self._before_terminate(slot)
        words.set(SlotField.INCARNATION, words.get(SlotField.INCARNATION) + 1)
        words.set(SlotField.PID, 1)
        self.due.discard(slot)
        self.workers[slot] = worker = Worker(self, slot)
        self.world.begin(worker, worker.body(self._crashes.get(slot)))

    def scale(self, size: int) -> None:
        self.shared.set(HeaderField.WORKERS, size)
        for slot in range(SLOTS):
            worker = self.workers[slot]
            if worker is None:
                self.due = self.due | {slot} if slot < size else self.due - {slot}
            elif slot >= size and not worker.stopping:
                self.drain(worker)
            elif worker.stopping:
                self._before_terminate(slot)

    def drain(self, worker: Worker) -> None:
        self._before_terminate(worker.slot)
        worker.drain()

    def stop(self) -> None:
        """Everything leaves; when the last worker has, so does the keeper, and gives the lease back."""
        self.stopping, self.keeper_told = True, False
        self.due = set()
        for worker in self.living:
            if not worker.stopping:
                self.drain(worker)

    def pause(self, paused: bool) -> None:
        self.shared.set(HeaderField.PAUSED, int(paused))
        self.paused_s = self.world.clock.now_s if paused else None
        self.resumed_s = self.world.clock.now_s

    def gone(self, worker: Worker, *, crashed: bool) -> None:
        """A process has ended."""
        if worker.left:
            self.world.ghosts.left(worker)
        worker.end()
        slot, words = worker.slot, worker.words
        self.workers[slot] = None
        self._crashes[slot] = _KILLED if crashed else None
        words.set(SlotField.PID, 0)
        if not crashed and not self.stopping:
            words.clear_started()
        is_over = self.burst and not crashed
        if not self.stopping and not is_over and (slot < self.size or (crashed and self._successor(slot) is not None)):
            self.due.add(slot)
        if not self.stopping and (slot not in self.due or slot in self._handing_over):
            self._handing_over.discard(slot)
            for other in self.living:
                other.words.add(SlotField.RESCAN_PENDING, 1)

    def die(self, *, with_host: bool) -> None:
        """The arbiter is killed, or its host ends: its children go with it, and what they had in common."""
        for process in (*self.living, self.keeper, self.arbiter):
            if process is not None:
                process.end(with_host=with_host)
        self.up, self.keeper = False, None
        self._end_relay(with_host=with_host)

    def _end_relay(self, *, with_host: bool = False) -> None:
        if self.relay is not None:
            self.relay.end(with_host=with_host)
            self.relay = None

    def _successor(self, slot: int) -> int | None:
        return min((other.slot for other in self.living if other.slot < self.size and other.slot != slot), default=None)

    def _before_terminate(self, slot: int) -> None:
        heir = None if slot < self.size or self.stopping else self._successor(slot)
        if heir is not None:
            self._handing_over.add(slot)
        self.shared.slot(slot).set(SlotField.HANDOVER_TO, 0 if heir is None else 1 + heir)
