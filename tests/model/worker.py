"""One worker process: its consumers and its settler, as the product's loop has them, without a loop.

It follows `worker/consumer.py`, `worker/runtime.py` and `worker/settler.py` step by step. The decisions are the real
ones, and so are reading, charging and handing over one's own list (`worker/own.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from supervisor.board import RowBoard, Word
from supervisor.broker.scripts import ACK_RETRIED, DEAD_LETTER, RETRY_LATER, Script
from supervisor.core.blame import lone_suspect
from supervisor.core.ids import parse_id
from supervisor.core.outcome import Dead, outcome_of
from supervisor.names import consumer_name
from supervisor.worker.adopt import Adopted
from supervisor.worker.delivery import Delivery
from supervisor.worker.own import OwnList
from supervisor.worker.settler import Keys
from tests.model.tasks import Command, Reader, Task, Trip, Until, Wire

if TYPE_CHECKING:
    from tests.model.pool import Pool

#: How many handlers of one consumer run at once, and how much is read for them.
CONCURRENCY = 2
BLOCK_MS = 5_000
#: As `consumer.READ_SLACK_S`.
READ_SLACK_MS = 5_000
#: As the option `hold_ms`.
HOLD_MS = 100


class Settler:
    """As `worker.settler.Settler`; what is on its way is (command, whose, ids)."""

    def __init__(self) -> None:
        self.items: list[tuple[Command, Keys, tuple[bytes, ...]]] = []
        self.unconfirmed: list[tuple[Command, Keys, tuple[bytes, ...]]] = []

    @property
    def idle(self) -> bool:
        return not self.items and not self.unconfirmed

    def ids(self, keys: Keys) -> set[bytes]:
        return {entry for _, of, ids in (*self.items, *self.unconfirmed) for entry in ids if of == keys}

    def ack(self, keys: Keys, ids: Sequence[bytes]) -> None:
        self.items.append((("XACK", keys.stream, keys.group, *ids), keys, tuple(ids)))

    def ack_retried(self, keys: Keys, entry: bytes) -> None:
        self._script(keys, ACK_RETRIED, (keys.stream, keys.retries, keys.crashes), keys.group, entry, ids=(entry,))

    def retry_later(self, keys: Keys, entry: bytes, attempts: int, due_ms: int) -> None:
        self._script(keys, RETRY_LATER, (keys.stream, keys.retries), keys.group, entry, f"{attempts}:{due_ms}", ids=())

    def dead(self, keys: Keys, entry: bytes, outcome: Dead) -> None:
        letter = ("id", entry, "reason", outcome.reason, "deliveries", outcome.attempts)
        names = (keys.stream, keys.retries, keys.crashes, keys.dead)
        self._script(keys, DEAD_LETTER, names, keys.group, entry, *letter, ids=(entry,))

    async def run(self) -> None:
        while True:
            await Until(lambda: self.items)
            while self.items or self.unconfirmed:
                self.unconfirmed += self.items
                self.items = []
                try:
                    await Trip([command for command, *_ in self.unconfirmed])
                except (RedisError, OSError):
                    continue
                self.unconfirmed = []

    def _script(
        self, keys: Keys, script: Script, names: Sequence[str], *arguments: Any, ids: tuple[bytes, ...]
    ) -> None:
        self.items.append((("EVAL", script.text, len(names), *names, *arguments), keys, ids))


class Consumer:
    """As `worker.consumer.Consumer`, with its executor, its intake and its outcomes."""

    def __init__(self, worker: Worker, stream: str, group: str, row: RowBoard) -> None:
        self.worker = worker
        self.group = group
        self.options = worker.world.options
        self.row = row
        self.keys = Keys.of(stream, group)
        self.reader = Reader(stream, group, worker.name)
        around = SimpleNamespace(wire=Wire(), settler=worker.settler, board=worker.words, crash=None, complain=_unheard)
        self.own = OwnList(SimpleNamespace(options=self.options), self.keys, around, row)  # type: ignore[arg-type]
        self.ready: deque[Delivery] = deque()
        self.running: list[Delivery] = []
        #: When each is due, and the delivery.
        self.waiting: list[tuple[float, Delivery]] = []
        self.sweep_wanted = False
        #: Until when the server may still serve the blocked read of a lost connection; when to look for what it brought.
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

    def failed(self, delivery: Delivery, error: Exception) -> None:
        self.running.remove(delivery)
        outcome = outcome_of(error, delivery.failed_before, self.options, lambda: 0.5)
        if isinstance(outcome, Dead):
            self.bury(delivery, outcome, error)
        else:
            delivery.failed_before, delivery.recorded = outcome.attempts, True
            due_ms = self.worker.world.now_ms + int(outcome.delay_s * 1000)
            self.waiting.append((due_ms, delivery))
            self.worker.settler.retry_later(self.keys, delivery.id, outcome.attempts, due_ms)
        self.advance()

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
                self.lost()
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
        self.row.set_alone(*parse_id(delivery.id))
        self.submit([delivery])
        await Until(lambda: not self.in_hand)
        await Until(lambda: self.worker.settler.idle)
        self.row.set_alone(0, 0)

    async def run(self) -> None:
        while not self.worker.stopping:
            try:
                await self._intake()
            except (RedisError, OSError):
                self.lost()
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

    def lost(self) -> None:
        """Its connection is; the server need not have noticed."""
        self.ghost_until_ms = self.worker.world.now_ms + BLOCK_MS

    async def leave(self, heir: str | None) -> None:
        if not self.in_hand:
            self.row.set_started(0, 0)
        self.ready.clear()
        if heir is not None:
            await self.own.hand_over(self.worker.name, heir)


class Worker:
    """As `worker.runtime.Runtime` and `worker.main`."""

    def __init__(self, pool: Pool, slot: int) -> None:
        self.pool = pool
        self.world = pool.world
        self.slot = slot
        self.name = consumer_name(pool.name, slot)
        self.words = pool.board.slot(slot)
        self.settler = Settler()
        self.alive = True
        self.stopping = False
        #: Retries that are due have to wait, as while a suspect runs.
        self.held = False
        self.gate_open = True
        self.give_back_at_ms = 0
        self._one = False
        self._suspects: list[Delivery] = []
        self._charged = False
        self.consumers = [self._consumer(group) for group in self.world.groups]
        self.tasks: list[Task] = []
        if self.words.get(Word.LEAVE):
            self.tasks.append(Task(self._close()))
        else:
            self.lives = [Task(self._live(consumer)) for consumer in self.consumers]
            self.tasks = [*self.lives, Task(self.settler.run()), Task(self._main())]

    def _consumer(self, group: str) -> Consumer:
        row = self.words.row(self.world.stream, group)
        assert row is not None
        return Consumer(self, self.world.stream, group, row)

    @property
    def left(self) -> bool:
        """It has done all that it had to."""
        return self.alive and self.tasks[-1].over

    def tick(self, now_ms: float) -> None:
        for consumer in self.consumers:
            consumer.tick(now_ms)
        if self.give_back_at_ms and now_ms >= self.give_back_at_ms:
            for consumer in self.consumers:
                consumer.ready.clear()

    def sweep(self) -> None:
        for consumer in self.consumers:
            consumer.sweep_wanted = True

    def drain(self) -> None:
        self.stopping = self.held = True
        self.give_back_at_ms = self.world.now_ms + HOLD_MS

    async def gate_passed(self) -> None:
        await Until(lambda: self.gate_open)

    async def _main(self) -> None:
        await Until(lambda: all(life.over for life in self.lives))
        await self._finish()
        await self._close()

    async def _close(self) -> None:
        leave = self.words.get(Word.LEAVE)
        heir = consumer_name(self.pool.name, leave - 1) if leave else None
        for consumer in self.consumers:
            await consumer.leave(heir)

    async def _live(self, consumer: Consumer) -> None:
        adopted = await consumer.open()
        self._suspects += adopted.suspects
        self._charged |= adopted.charged
        if all(other.own.opened for other in self.consumers):
            self.words.set(Word.READY_NS, 1)
        await consumer.start(adopted)
        if adopted.suspects:
            await self._run_suspects(consumer, adopted.suspects)
        await consumer.run()

    async def _run_suspects(self, consumer: Consumer, suspects: Sequence[Delivery]) -> None:
        await Until(lambda: not self._one)
        self._one, self.gate_open, self.held = True, False, True
        await self._finish()
        for delivery in suspects:
            if self.stopping:
                break
            if not await self._charge_if_lone(consumer, delivery):
                await consumer.run_alone(delivery)
        self.held = self.stopping
        self._one, self.gate_open = False, True

    async def _charge_if_lone(self, consumer: Consumer, delivery: Delivery) -> bool:
        all_read = all(other.own.opened for other in self.consumers)
        if not lone_suspect(len(self._suspects), charged=self._charged, all_read=all_read):
            return False
        try:
            return await consumer.own.charge(delivery, consumer)  # type: ignore[arg-type]
        except (RedisError, OSError):
            return False

    async def _finish(self) -> None:
        for consumer in self.consumers:
            await Until(lambda consumer=consumer: not consumer.in_hand)
        await Until(lambda: self.settler.idle)


def _unheard(*_: object, **__: object) -> None:
    """What is complained of; a model has no log."""


def _in_order(deliveries: Sequence[Delivery]) -> list[Delivery]:
    return sorted(deliveries, key=lambda delivery: parse_id(delivery.id))
