"""One consumer of a worker process, with its executor, its intake and its outcomes.

It follows `worker/consumer.py` step by step. The decisions are the real ones, and so are reading, charging and handing
over one's own list (`worker/own.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from supervisor.core.ids import parse_id
from supervisor.core.outcome import Dead, outcome_of
from supervisor.shared_state import SharedConsumer, SlotField
from supervisor.worker.adopt import Adopted
from supervisor.worker.delivery import Delivery
from supervisor.worker.mark import Mark
from supervisor.worker.own import OwnList
from supervisor.worker.settler import Keys
from tests.model.tasks import Reader, Until, Wire

if TYPE_CHECKING:
    from tests.model.worker import Worker

#: How many handlers of one consumer run at once, and how much is read for them.
CONCURRENCY = 2
BLOCK_MS = 5_000
#: As `consumer.READ_SLACK_S`.
READ_SLACK_MS = 5_000


class Consumer:
    """As `worker.consumer.Consumer`, with its executor, its intake and its outcomes."""

    def __init__(self, worker: Worker, stream: str, group: str, row: SharedConsumer) -> None:
        self.worker = worker
        self.group = group
        self.options = worker.world.options
        self.row = row
        self.keys = Keys.of(stream, group)
        self.reader = Reader(stream, group, worker.name)
        wire: Any = Wire()
        settler: Any = worker.settler
        self.mark = Mark(wire, settler, self.keys, worker.name, worker.words, row)
        around: Any = SimpleNamespace(
            wire=wire,
            settler=worker.settler,
            shared=worker.words,
            crash=None,
            name=worker.name,
            faults=_unheard,
            burst=False,
        )
        spec: Any = SimpleNamespace(options=self.options)
        self.own = OwnList(spec, self.keys, around, row, self.mark)
        self.ready: deque[Delivery] = deque()
        self.running: list[Delivery] = []
        #: When each is due, and the delivery.
        self.waiting: list[tuple[float, Delivery]] = []
        self.sweep_wanted = False
        #: Until when the server may still serve the blocked read of a lost connection; when to look what it brought.
        self.ghost_until_ms = 0
        self.sweep_at_ms = 0

    @property
    def in_hand(self) -> int:
        return len(self.ready) + len(self.running)

    # The handlers

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self.row.set_started(*max(parse_id(deliveries[-1].id), self.row.started()))
            self.ready.extend(deliveries)
            self.advance()

    def progress(self) -> None:
        if self.own.opened and not self.in_hand and not self.worker.words.get(SlotField.ISOLATING):
            self.row.set_started(0, 0)

    def advance(self) -> None:
        while self.ready and len(self.running) < CONCURRENCY:
            delivery = self.ready.popleft()
            self.running.append(delivery)
            self.worker.world.began(self, delivery)

    def done(self, delivery: Delivery) -> None:
        self.running.remove(delivery)
        if delivery.recorded:
            self.worker.settler.ack_retried(self.keys, delivery.id)
        else:
            self.worker.settler.ack(self.keys, [delivery.id])
        self.advance()
        self.progress()

    def failed(self, delivery: Delivery, error: Exception) -> None:
        self.running.remove(delivery)
        outcome = outcome_of(error, delivery.failed_before, self.options, lambda: 0.5)
        if isinstance(outcome, Dead):
            self.bury(delivery, outcome, error)
        else:
            delivery.failed_before, delivery.recorded = outcome.attempts, True
            due_ms = self.worker.world.now_ms + int(outcome.delay_s * 1000)
            self.waiting.append((due_ms, delivery))
            self.worker.settler.retry_later(
                self.keys, delivery.id, outcome.attempts, due_ms, int(outcome.delay_s * 1000)
            )
        self.advance()
        self.progress()

    def bury(self, delivery: Delivery, outcome: Dead, error: BaseException | None, crash: Any = None) -> None:
        """What `OwnList` asks of its outcomes."""
        self.worker.settler.dead(self.keys, delivery.id, outcome)

    # Time

    def tick(self, now_ms: float) -> None:
        if not self.worker.held:
            due = [delivery for due_ms, delivery in self.waiting if due_ms <= now_ms]
            self.waiting = [(due_ms, delivery) for due_ms, delivery in self.waiting if due_ms > now_ms]
            self.submit(_in_order(due))
        if self.sweep_at_ms and now_ms >= self.sweep_at_ms:
            self.sweep_at_ms, self.sweep_wanted = 0, True

    # From open to close

    async def open(self) -> Adopted:
        while True:
            try:
                await self.own.make_group()
                return await self.sweep()
            except (RedisError, OSError):
                self.worker.world.ghosts.forgive()  # what was to be charged may not be
                if self.worker.stopping:
                    return Adopted()

    async def start(self, adopted: Adopted) -> None:
        await self.worker.gate_passed()
        now_ms = self.worker.world.now_ms
        self.waiting += [(now_ms + wait_s * 1000, delivery) for delivery, wait_s in adopted.waiting]
        plain = _in_order(adopted.plain)
        for at in range(0, len(plain), CONCURRENCY):
            await Until(lambda: not self.ready or self.worker.stopping)
            await self.worker.gate_passed()
            if self.worker.stopping:
                return
            self.submit(plain[at : at + CONCURRENCY])

    async def run_alone(self, delivery: Delivery) -> None:
        delivery.recorded = True
        await self.mark.set(delivery.id)
        self.submit([delivery])
        await Until(lambda: not self.in_hand)
        self.mark.over()
        await Until(lambda: self.worker.settler.idle)

    async def run(self) -> None:
        while not self.worker.stopping:
            try:
                await self._intake()
            except (RedisError, OSError):
                # The server need not have noticed, and may still serve the read.
                self.ghost_until_ms = self.worker.world.now_ms + BLOCK_MS
                if not self.worker.stopping:
                    await self.adopt(await self.open())
                    self.sweep_at_ms = self.worker.world.now_ms + BLOCK_MS + READ_SLACK_MS

    async def _intake(self) -> None:
        while True:
            await Until(lambda: self.worker.stopping or self.sweep_wanted or self._may_read())
            if self.worker.stopping:
                return
            if self.sweep_wanted:
                self.sweep_wanted = False
                await self.adopt(await self.sweep())
                continue
            await self.reader.send(CONCURRENCY)
            entries = await self.reader.receive()
            await self.worker.gate_passed()
            self.submit([Delivery(entry[0], entry[1]) for entry in entries])

    def _may_read(self) -> bool:
        room = self.in_hand < 2 * CONCURRENCY and len(self.waiting) < self.options.max_waiting
        return room and self.worker.gate_open and self.worker.world.unread(self.keys.stream, self.group)

    async def sweep(self) -> Adopted:
        hand = [*self.ready, *self.running, *(delivery for _, delivery in self.waiting)]
        known = {delivery.id for delivery in hand} | self.worker.settler.ids(self.keys)
        return await self.own.sweep(self.reader, known, self)  # type: ignore[arg-type]

    async def adopt(self, adopted: Adopted) -> None:
        adopted.plain += adopted.suspects
        await self.start(adopted)

    async def leave(self, heir: str | None) -> None:
        if not self.in_hand:
            self.row.set_started(0, 0)
        self.ready.clear()
        if self.row.isolated() is not None:
            await self.mark.clear()
        if heir is not None:
            await self.own.hand_over(heir)


def _unheard(*_: object, **__: object) -> None:
    """What is complained of; a model has no log."""


def _in_order(deliveries: Sequence[Delivery]) -> list[Delivery]:
    return sorted(deliveries, key=lambda delivery: parse_id(delivery.id))
