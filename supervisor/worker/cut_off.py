"""Whether a consumer can read and settle, for the arbiter to see."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from supervisor.broker.redis_errors import code_of
from supervisor.core.cut_off import pack_code, settling

if TYPE_CHECKING:
    from supervisor.shared_consumer import SharedConsumer


class CutOff:
    """Notes in shared memory since when a consumer can't read, or can't settle, and why."""

    def __init__(self, marks: SharedConsumer) -> None:
        self._marks = marks
        #: Connecting works and reading does not: only a read that is answered proves that it reads again.
        self._reads_fail = False
        #: Since when it can't read or settle, and the code; 0: it can.
        self._reading = self._settling = (0, "")

    @property
    def active(self) -> bool:
        """Whether it can't read or can't settle at present."""
        return bool(self._reading[0] or self._settling[0])

    def failed(self, error: BaseException, *, reading: bool = False, failures: int = 1) -> None:
        """Note that connecting failed, or with `reading` a read, the `failures`-th since one was answered."""
        if reading:
            self._reads_fail = isinstance(error, ResponseError) or failures > 1
        self._reading = self._reading[0] or time.monotonic_ns(), code_of(error)
        self._note()

    def connected(self) -> None:
        """Note that the consumer is connected and has read its pending lists."""
        if not self._reads_fail:
            self.answered()

    def answered(self) -> None:
        """Note that a read was answered."""
        if self._reading[0]:
            self._reads_fail, self._reading = False, (0, "")
            self._note()

    def refused(self, error: BaseException | None) -> None:
        """Note that Redis refuses acks, retries or dead letters; None: it takes them."""
        if error is not None:
            self._settling = self._settling[0] or time.monotonic_ns(), settling(code_of(error))
            self._note()
        elif self._settling[0]:
            self._settling = (0, "")
            self._note()

    def _note(self) -> None:
        since_ns, code = self._reading if self._reading[0] else self._settling
        self._marks.set_cut_off(since_ns, pack_code(code))
