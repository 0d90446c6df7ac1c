"""One worker process: its consumers and its settler, as the product's loop has them, without a loop.

It follows `worker/runtime.py` step by step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from supervisor.core.blame import lone_suspect
from supervisor.keys import consumer_name
from supervisor.shared_state import SlotField
from supervisor.worker.adopt import Adopted
from supervisor.worker.delivery import Delivery
from tests.model.consumer import Consumer
from tests.model.settler import Settler
from tests.model.tasks import Task, Until

if TYPE_CHECKING:
    from tests.model.pool import Pool

#: As the option `hold_ms`.
HOLD_MS = 100


class Worker:
    """As `worker.runtime.Runtime` and `worker.main`."""

    def __init__(self, pool: Pool, slot: int) -> None:
        self.pool = pool
        self.world = pool.world
        self.slot = slot
        self.name = consumer_name(pool.name, slot)
        self.words = pool.shared.slot(slot)
        self.settler = Settler(self.progress)
        self.alive = True
        self.stopping = False
        #: Retries that are due have to wait, as while a suspect runs.
        self.held = False
        self.gate_open = True
        self.give_back_at_ms = 0
        self._one = False
        self._suspects = self._suspicious = 0
        self._charged = bool(self.words.get(SlotField.ISOLATING))
        self.consumers = [self._consumer(group) for group in self.world.groups]
        self.tasks: list[Task] = []
        if self.words.get(SlotField.HANDOVER_TO):
            self.tasks.append(Task(self._close()))
        else:
            self.lives = [Task(self._live(consumer)) for consumer in self.consumers]
            self.tasks = [*self.lives, Task(self.settler.run()), Task(self._main())]

    def _consumer(self, group: str) -> Consumer:
        row = self.words.consumer(self.world.stream, group)
        assert row is not None
        return Consumer(self, self.world.stream, group, row)

    @property
    def left(self) -> bool:
        """It has done all that it had to."""
        return self.alive and self.tasks[-1].over

    @property
    def accounting(self) -> bool:
        """What its predecessor died of is being charged: if it dies now, that may never be."""
        return bool(self._suspicious) or not all(consumer.own.opened for consumer in self.consumers)

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
        leave = self.words.get(SlotField.HANDOVER_TO)
        heir = consumer_name(self.pool.name, leave - 1) if leave else None
        for consumer in self.consumers:
            await consumer.leave(heir)

    async def _live(self, consumer: Consumer) -> None:
        adopted = await consumer.open()
        self._suspects += len(adopted.suspects)
        self._charged |= adopted.charged
        self._suspect(bool(adopted.suspects))
        consumer.progress()
        if all(other.own.opened for other in self.consumers):
            self.words.set(SlotField.READY_NS, 1)
        await consumer.start(adopted)
        if adopted.suspects:
            await self._run_suspects(consumer, adopted)
        await consumer.run()

    async def _run_suspects(self, consumer: Consumer, adopted: Adopted) -> None:
        await Until(lambda: not self._one)
        self._one, self.gate_open, self.held = True, False, True
        await self._finish()
        for delivery in adopted.suspects:
            if self.stopping:
                break
            if not (adopted.crashed and await self._charge_if_lone(consumer, delivery)):
                await consumer.run_alone(delivery)
        self.held = self.stopping
        self._one, self.gate_open = False, True
        if not self.stopping:
            self._suspect(-1)
        self.progress()

    def _suspect(self, more: int) -> None:
        self._suspicious += more
        if self._suspicious or all(other.own.opened for other in self.consumers):
            self.words.set(SlotField.ISOLATING, int(self._suspicious > 0))

    def progress(self) -> None:
        for consumer in self.consumers:
            consumer.progress()

    async def _charge_if_lone(self, consumer: Consumer, delivery: Delivery) -> bool:
        all_read = all(other.own.opened for other in self.consumers)
        if not lone_suspect(self._suspects, charged=self._charged, all_read=all_read):
            return False
        try:
            return await consumer.own.charge(delivery, consumer)  # type: ignore[arg-type]
        except (RedisError, OSError):
            self.world.ghosts.forgive()
            return False

    async def _finish(self) -> None:
        for consumer in self.consumers:
            await Until(lambda consumer=consumer: not consumer.in_hand)
        await Until(lambda: self.settler.idle)
