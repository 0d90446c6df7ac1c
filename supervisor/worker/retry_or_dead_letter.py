"""Decides what becomes of a failed message, a retry or a dead letter, and hands it to the settler."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from supervisor.broker.scripts import DEAD_LETTER_UNREADABLE
from supervisor.core.backoff import backoff_s
from supervisor.core.ids import parse_id
from supervisor.core.lacks import PER_MESSAGE_MAX, Lack, lack_of
from supervisor.core.outcome import Crash, Dead, outcome_of
from supervisor.errors import SupervisorError
from supervisor.messages import Message, Reject, Retry
from supervisor.shared_figures import FigureField
from supervisor.shared_state import SlotField
from supervisor.text import public_text
from supervisor.worker.dead_letter_fields import dead_letter

if TYPE_CHECKING:
    from supervisor.broker.command_connection import Argument
    from supervisor.handling.loader import HandlerSpec
    from supervisor.worker.resources import Resources
    from supervisor.worker.retry_queue import RetryQueue
    from supervisor.worker.source import Source

#: The reason of a dead letter that no worker has seen.
UNREADABLE = (
    "can't be read: each time, the connection was lost in the middle of it;"
    " is client-output-buffer-limit of the server too small for it?"
)
#: A smaller entry passes every limit that a server could work with: then the network is at fault, and may recover.
UNREADABLE_BYTES_MIN = 64 * 1024
_LACKS_KEPT_MAX = 10_000


class Failures:
    """Decides for one handler, counts and logs; the settler sends."""

    def __init__(self, spec: HandlerSpec, resources: Resources, retries: RetryQueue) -> None:
        self._spec = spec
        self._resources = resources
        self._settler = resources.settler
        self._retries = retries
        self._shared = resources.shared
        self._faults = resources.faults
        #: Messages whose handler failed, and those that it has refused or put off itself.
        self.failed_count = 0
        self.excused_count = 0
        self.last_error: BaseException | None = None
        #: How often messages met a lack of the worker.
        self._lacks_met: dict[bytes, int] = {}

    def failed(self, message: Message, error: BaseException) -> None:
        """Retry a message whose handler raised `error`, or give it up."""
        if (lack := lack_of(error)) and self._lacked(message, lack, error):
            return
        if isinstance(error, Reject | Retry):
            self.excused_count += 1
        else:
            self.failed_count += 1
            self.last_error = error
        outcome = outcome_of(error, message.failures, self._spec.options, random.random)
        if isinstance(outcome, Dead):
            self.give_up(message, outcome, error)
            return
        self._shared.add(SlotField.FAILED, 1)
        _source(message).figures.add(FigureField.SETTLED_RETRY)
        message.failures = outcome.attempts
        self._retry_later(message, outcome.delay_s)
        self._faults(
            "handler failed",
            error,
            key=self._spec.name,
            handler=self._spec.name,
            stream=self._spec.stream,
            group=self._spec.group,
            id=message.id,
            attempt=f"{outcome.attempts}/{self._spec.options.max_deliveries}",
            next_s=round(outcome.delay_s, 1),
            exc_info=_unexpected(error),
        )

    def overstayed(self, message: Message) -> None:
        """Charge a crash to a message whose call goes on long after its time limit: the worker is killed for it.

        The message waits for its next attempt. When this was one crash too many, the worker's successor makes it a dead
        letter. A message that is settled is not charged. The successor may charge one that is in hand again or is
        marked as running alone.
        """
        source = _source(message)
        is_marked = source.marks.isolated() == parse_id(message.entry)
        if not is_marked and any(waiting is message for waiting in self._retries.messages()):
            self._settler.charge(source, message.entry)

    def decode_error(self, message: Message) -> Exception | None:
        """Return why a message of a batch can't be decoded; a batch that ran out of time has not said so."""
        if self._spec.batch:
            try:
                self._spec.decode(message)
            except Exception as error:
                return error
        return None

    def _lacked(self, message: Message, lack: Lack, error: BaseException) -> bool:
        """Retry it without counting an attempt, since the worker lacks something; False when it met that too often."""
        met = self._lacks_met.get(message.entry, 0) + 1
        if met > PER_MESSAGE_MAX:
            self._lacks_met.pop(message.entry)
            return False
        self._lacks_met[message.entry] = met
        while len(self._lacks_met) > _LACKS_KEPT_MAX:
            self._lacks_met.pop(next(iter(self._lacks_met)))
        self._resources.lacks.note(lack, error)
        delay_s = backoff_s(met, self._spec.options.retry_base_s, self._spec.options.retry_max_s, random.random)
        self._retry_later(message, delay_s)
        return True

    def _retry_later(self, message: Message, delay_s: float) -> None:
        message.recorded = True
        self._retries.add(message, delay_s)
        delay_ms = int(delay_s * 1000)
        due_ms = int(time.time() * 1000) + delay_ms
        self._settler.retry_later(_source(message), message.entry, message.failures, due_ms, delay_ms)

    def give_up(self, message: Message, outcome: Dead, error: BaseException | None, crash: Crash | None = None) -> None:
        """Make the message a dead letter, for what its handler raised or for how its process ended."""
        self._settler.dead_letter(_source(message), message.entry, self._letter(message, outcome, error, crash))
        self._shared.add(SlotField.DEAD, 1)
        _source(message).figures.add(FigureField.SETTLED_DEAD)
        self._log_dead(message.id, outcome, error, crash=crash and crash.text)

    async def give_up_unread(self, source: Source, entry: bytes) -> None:
        """Make a dead letter of an entry whose reply is lost each time, if it is large enough to be the cause.

        Raises redis-py's errors and OSError.
        """
        outcome = Dead(UNREADABLE, 0)
        letter = self._letter(Message.from_reply(source, [(entry, ())])[0], outcome)
        consumer = self._resources.consumer
        reply = await self._resources.commands.script(
            DEAD_LETTER_UNREADABLE,
            source.dead_letter_keys,
            source.group,
            consumer,
            entry,
            UNREADABLE_BYTES_MIN,
            *letter,
        )
        if reply:
            size, message_id = reply
            self._shared.add(SlotField.DEAD, 1)
            source.figures.add(FigureField.SETTLED_DEAD)
            self._log_dead(message_id.decode(), outcome, size=size)

    def _log_dead(self, message_id: str, outcome: Dead, error: BaseException | None = None, **details: object) -> None:
        self._faults(
            "message given up",
            error or SupervisorError(outcome.reason),
            level="error",
            key=self._spec.name,
            handler=self._spec.name,
            stream=self._spec.stream,
            group=self._spec.group,
            id=message_id,
            reason=public_text(outcome.reason, error) if error else outcome.reason,
            exc_info=_unexpected(error),
            **details,
        )

    def _letter(
        self, message: Message, outcome: Dead, error: BaseException | None = None, crash: Crash | None = None
    ) -> list[Argument]:
        worker, handler, now_ms = self._resources.consumer, self._spec.name, int(time.time() * 1000)
        return dead_letter(message, outcome, error=error, crash=crash, worker=worker, handler=handler, now_ms=now_ms)


def _unexpected(error: BaseException | None) -> BaseException | None:
    """Return the exception if its traceback says more than its text: not the handler's own decision."""
    return None if isinstance(error, Retry | Reject) else error


def _source(message: Message) -> Source:
    """Return the source that the message was read from: a worker gives each message one."""
    source: Source = message.origin  # type: ignore[assignment]
    return source
