"""What becomes of each delivery of one consumer: done, retried later, or a dead letter.

It decides and counts; the settler sends. Acks of one turn of the loop are gathered into one.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

from supervisor.broker.scripts import DEAD_LETTER_UNREADABLE
from supervisor.core.outcome import Crash, Dead, outcome_of
from supervisor.errors import SupervisorError
from supervisor.shared_state import SlotField
from supervisor.worker.delivery import Delivery
from supervisor.worker.letter import dead_letter
from supervisor.worker.settler import Keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.broker.wire import Argument, Wire
    from supervisor.handling.load import HandlerSpec
    from supervisor.worker.surroundings import Surroundings
    from supervisor.worker.waiting import Waiting

#: The reason of a dead letter that no worker has seen.
UNREADABLE = (
    "can't be read: each time, the connection was lost in the middle of it;"
    " is client-output-buffer-limit of the server too small for it?"
)
#: A smaller entry passes no limit that a server could work with: the network is at fault, and may recover.
UNREADABLE_BYTES_MIN = 64 * 1024


class Outcomes:
    """The decisions on one (stream, group); the executor tells it how handlers end."""

    def __init__(
        self,
        spec: HandlerSpec,
        keys: Keys,
        around: Surroundings,
        waiting: Waiting,
        progress: Callable[[], None],
    ) -> None:
        """`progress` is called when there is room for more."""
        self._spec = spec
        self._keys = keys
        self._of_copies = Keys.of_copies(spec.stream, spec.group)
        self._settler = around.settler
        self._waiting = waiting
        self._shared = around.shared
        self._faults = around.faults
        self._worker = around.name
        self._loop = asyncio.get_running_loop()
        self._flush_due = False
        #: Done in this turn of the loop.
        self.acks: list[bytes] = []
        self.progress = progress
        self.broke = around.broke

    def done(self, delivery: Delivery) -> None:
        """The handler returned."""
        if delivery.recorded:
            self._settler.ack_retried(self._keys_of(delivery), delivery.id)
            self._shared.add(SlotField.DONE, 1)
            return
        self.acks.append(delivery.id)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush_acks)

    def failed(self, delivery: Delivery, error: BaseException) -> None:
        """The handler raised: retry with backoff, or give the message up."""
        outcome = outcome_of(error, delivery.failed_before, self._spec.options, random.random)
        if isinstance(outcome, Dead):
            self.bury(delivery, outcome, error)
            return
        self._shared.add(SlotField.FAILED, 1)
        delivery.failed_before = outcome.attempts
        delivery.recorded = True
        self._waiting.add(delivery, outcome.delay_s)
        self._faults(
            "handler failed",
            error,
            key=self._spec.name,
            stream=self._spec.stream,
            group=self._spec.group,
            id=delivery.origin.decode(),
            attempt=f"{outcome.attempts}/{self._spec.options.max_deliveries}",
            next_s=round(outcome.delay_s, 1),
            exc_info=error,
        )
        delay_ms = int(outcome.delay_s * 1000)
        self._settler.retry_later(
            self._keys_of(delivery), delivery.id, outcome.attempts, int(time.time() * 1000) + delay_ms, delay_ms
        )

    def bury(self, delivery: Delivery, outcome: Dead, error: BaseException | None, crash: Crash | None = None) -> None:
        """Make it a dead letter, for what its handler raised or for how its process ended."""
        self._settler.dead(self._keys_of(delivery), delivery.id, self._letter(delivery, outcome, error, crash))
        self._shared.add(SlotField.DEAD, 1)
        self._tell_buried(delivery.origin, outcome, error, crash=crash and crash.text)

    def _tell_buried(self, entry: bytes, outcome: Dead, error: BaseException | None = None, **details: object) -> None:
        self._faults(
            "message given up",
            error or SupervisorError(outcome.reason),
            level="error",
            key=self._spec.name,
            stream=self._spec.stream,
            group=self._spec.group,
            id=entry.decode(),
            reason=outcome.reason,
            dead=self._keys.dead,
            exc_info=error,
            **details,
        )

    async def bury_unread(self, keys: Keys, entry: bytes, wire: Wire) -> None:
        """Make a dead letter of an entry whose reply is lost each time, if it is large enough to be why.

        `keys`: of the stream that it is in. Raises redis-py's errors and OSError.
        """
        outcome = Dead(UNREADABLE, 0)
        letter = self._letter(Delivery(entry, ()), outcome)
        script_keys = [keys.stream, keys.retries, keys.crashes, keys.dead, *keys.copies]
        done = await wire.script(
            DEAD_LETTER_UNREADABLE, script_keys, keys.group, self._worker, entry, UNREADABLE_BYTES_MIN, *letter
        )
        if done:
            size, origin = done
            self._shared.add(SlotField.DEAD, 1)
            self._tell_buried(origin, outcome, size=size)

    def _letter(
        self, delivery: Delivery, outcome: Dead, error: BaseException | None = None, crash: Crash | None = None
    ) -> list[Argument]:
        worker, handler, now_ms = self._worker, self._spec.name, int(time.time() * 1000)
        return dead_letter(delivery, outcome, error=error, crash=crash, worker=worker, handler=handler, now_ms=now_ms)

    def flush_acks(self) -> None:
        """Hand what was done to the settler."""
        self._flush_due = False
        acks, self.acks = self.acks, []
        if acks:
            self._settler.ack(self._keys, acks)
            self._shared.add(SlotField.DONE, len(acks))
            self._shared.add(SlotField.BATCHES, 1)

    def _keys_of(self, delivery: Delivery) -> Keys:
        return self._of_copies if delivery.copied else self._keys
