"""Whether a consumer can read, for the arbiter to see."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from supervisor.broker.redis_errors import code_of
from supervisor.core.cut_off import pack_code

if TYPE_CHECKING:
    from supervisor.shared_consumer import SharedConsumer


class CutOff:
    """Notes in shared memory since when a consumer can't read, and why."""

    def __init__(self, marks: SharedConsumer) -> None:
        self._marks = marks
        #: It can't read at present.
        self.active = False
        #: Connecting works and reading does not: only a read that is answered proves that it reads again.
        self._reads_fail = False

    def failed(self, error: BaseException, *, reading: bool = False, failures: int = 1) -> None:
        """Note that connecting failed, or with `reading` a read, the `failures`-th since one was answered."""
        if reading:
            self._reads_fail = isinstance(error, ResponseError) or failures > 1
        if not self.active:
            self._since_ns = time.monotonic_ns()
        self.active = True
        self._marks.set_cut_off(self._since_ns, pack_code(code_of(error)))

    def connected(self) -> None:
        """Note that the consumer is connected and has read its pending lists."""
        if not self._reads_fail:
            self.answered()

    def answered(self) -> None:
        """Note that a read was answered."""
        if self.active:
            self.active = self._reads_fail = False
            self._marks.set_cut_off(0)
