"""One pool on one host: its arbiter, its keeper, its slots, as far as messages depend on them.

The keeper's lease and its reaper are the real code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from supervisor.keeper.lease import RENEW_S, drop, take
from supervisor.keeper.reaper import Reaper
from supervisor.keys import consumer_name, isolated_key
from supervisor.shared_state import HEADER_FIELDS, SLOT_STRIDE, HeaderField, SharedSlot, SlotField
from tests.model.tasks import Client, Task, Until
from tests.model.worker import Worker

if TYPE_CHECKING:
    from tests.model.world import World

#: Enough to shrink and to grow.
SLOTS = 3


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


class _Silent:
    def info(self, *_: Any, **__: Any) -> None:
        pass


class Pool:
    """What one `supervisor start` has under it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        #: Kept in its state directory: the same for each start.
        self.token = f"token of {name}"
        self.up = False
        self.stopping = False
        #: Nothing of it runs (a machine that sleeps, SIGSTOP), or nothing of it reaches Redis.
        self.frozen = False
        self.cut_off = False
        self.workers: dict[int, Worker | None] = {}
        #: Crashed or not started yet, and shall come (again).
        self.due: set[int] = set()
        self.boot: Task | None = None
        self.keeper: Task | None = None
        #: When its keeper has to end the look that it has begun; 0: it has begun none.
        self.look_until_ms = 0.0
        #: Since when its keeper has seen Redis without a break.
        self.seen_since_ms = 0
        self._sweeps: dict[int, int] = {}
        #: As in `arbiter.pool`.
        self._handing: set[int] = set()

    @property
    def size(self) -> int:
        return self.shared.get(HeaderField.WORKERS)

    @property
    def living(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker is not None] if self.up else []

    @property
    def tasks(self) -> list[Task]:
        """All that could go on."""
        if not self.up or self.frozen:
            return []
        found = [task for worker in self.living for task in worker.tasks]
        return [task for task in (*found, self.boot, self.keeper) if task is not None and task.ready]

    def start(self, size: int) -> None:
        self.shared = SharedState()
        self.shared.set(HeaderField.WORKERS, size)
        self.up, self.stopping, self.frozen, self.cut_off = True, False, False, False
        self.workers, self.due, self._sweeps = dict.fromkeys(range(SLOTS)), set(), {}
        self.keeper = None
        self.boot = Task(self._boot(size))

    async def _boot(self, size: int) -> None:
        """As `keeper.boot`, and what comes after it."""
        client: Any = Client()
        try:
            await take(client, self.name, self.token)
        except (RedisError, OSError):
            self.up = False
            return
        if not self.stopping:
            self.due = set(range(size))
            self.start_keeper()

    def start_keeper(self) -> None:
        if self.keeper is not None:
            self.keeper.drop()
        self.look_until_ms, self.seen_since_ms = 0, self.world.now_ms
        self.keeper = Task(self._keep())

    def spawn(self, slot: int) -> None:
        words = self.shared.slot(slot)
        words.reset_for_new_worker()
        self._tell(slot)
        words.set(SlotField.INCARNATION, words.get(SlotField.INCARNATION) + 1)
        words.set(SlotField.PID, 1)
        self.due.discard(slot)
        self._sweeps[slot] = words.get(SlotField.RESCAN_PENDING)
        self.workers[slot] = Worker(self, slot)

    def scale(self, size: int) -> None:
        self.shared.set(HeaderField.WORKERS, size)
        for slot in range(SLOTS):
            worker = self.workers[slot]
            if worker is None:
                self.due = self.due | {slot} if slot < size else self.due - {slot}
            elif slot >= size and not worker.stopping:
                self.drain(worker)
            elif worker.stopping:
                self._tell(slot)

    def drain(self, worker: Worker) -> None:
        self._tell(worker.slot)
        worker.drain()

    def stop(self) -> None:
        """Everything leaves; when the last worker has, so does the keeper, and gives the lease back."""
        self.stopping = True
        self.due = set()
        for worker in self.living:
            self.drain(worker)
        self._see_to_the_end()

    def gone(self, worker: Worker, *, crashed: bool) -> None:
        """A process has ended."""
        for task in worker.tasks:
            task.drop()
        worker.alive = False
        slot, words = worker.slot, self.shared.slot(worker.slot)
        self.workers[slot] = None
        words.set(SlotField.PID, 0)
        if not crashed and not self.stopping:
            words.clear_started()
        if not self.stopping and (slot < self.size or (crashed and self._heir(slot) is not None)):
            self.due.add(slot)
        if not self.stopping and (slot not in self.due or slot in self._handing):
            self._handing.discard(slot)
            for other in self.living:
                self.shared.slot(other.slot).add(SlotField.RESCAN_PENDING, 1)
        if not crashed or slot not in self.due:
            self.world.ghosts.forgive()
        self._see_to_the_end()

    def die(self) -> None:
        """The arbiter is killed: its children go with it, and what they had in common."""
        for worker in self.living:
            for task in worker.tasks:
                task.drop()
            worker.alive = False
        if self.keeper is not None:
            self.keeper.drop()
        if self.boot is not None:
            self.boot.drop()
        self.up, self.keeper = False, None

    def tick(self, now_ms: float) -> None:
        if not self.up or self.frozen:
            return
        for worker in self.living:
            asked = self.shared.slot(worker.slot).get(SlotField.RESCAN_PENDING)
            if self._sweeps.setdefault(worker.slot, 0) != asked:
                self._sweeps[worker.slot] = asked
                worker.sweep()
            worker.tick(now_ms)

    def _heir(self, slot: int) -> int | None:
        return min((other.slot for other in self.living if other.slot < self.size and other.slot != slot), default=None)

    def _tell(self, slot: int) -> None:
        word = self._leave_word(slot)
        if word:
            self._handing.add(slot)
        self.shared.slot(slot).set(SlotField.HANDOVER_TO, word)

    def _leave_word(self, slot: int) -> int:
        heir = None if slot < self.size or self.stopping else self._heir(slot)
        return 0 if heir is None else 1 + heir

    def _see_to_the_end(self) -> None:
        if self.stopping and not self.living:
            if self.keeper is not None:
                self.keeper.drop()
            self.keeper = Task(self._give_back())

    async def _keep(self) -> None:
        groups = [(self.world.stream, group) for group in self.world.groups]
        client: Any = Client()
        self.reaper = Reaper(client, self.name, self.token, self.shared, groups, _Silent())  # type: ignore[arg-type]
        while True:
            due_ms = self.world.now_ms + RENEW_S * 1000
            try:
                if await take(client, self.name, self.token):
                    self.look_until_ms = due_ms
                    await self.reaper._look()
            except TimeoutError:  # the world's, as `Reaper.look` limits itself
                pass
            except (RedisError, OSError):
                self.reaper.note_outage()
            self.look_until_ms = 0
            await Until(lambda due_ms=due_ms: self.world.now_ms >= due_ms)

    async def _give_back(self) -> None:
        """As `keeper.main` at its end."""
        client: Any = Client()
        try:
            for group in self.world.groups:
                for slot in range(self.size):
                    await client.hdel(isolated_key(self.world.stream, group), consumer_name(self.name, slot))
            await drop(client, self.name, self.token)
        except (RedisError, OSError):
            pass
        self.world.ghosts.forgive()
        self.up = False
