"""The record of a failed message that waits for its retry, as workers store it in a Redis hash. Pure.

Anybody can write to a hash, so a value that no worker has written reads as missing.
"""

from typing import NamedTuple

from supervisor.core.ids import parse_number


class RetryRecord(NamedTuple):
    """A failed message that waits, stored as `attempts:due_ms:delay_ms`."""

    #: Handler runs that failed.
    attempts: int
    #: When the next run is due, Unix ms.
    due_ms: int
    #: The backoff that led to `due_ms`.
    delay_ms: int

    def encode(self) -> str:
        """Return the stored form."""
        return f"{self.attempts}:{self.due_ms}:{self.delay_ms}"

    def wait_ms(self, now_ms: int) -> int:
        """Return the time left, which never exceeds the backoff: the clock may have been put back since."""
        return max(0, min(self.due_ms - now_ms, self.delay_ms))


def parse_retry(text: bytes | None) -> RetryRecord | None:
    """Return the stored record; None when there is none or it is malformed."""
    parts = [number for part in (text or b"").split(b":") if (number := parse_number(part)) is not None]
    return RetryRecord(*parts) if text and len(parts) == len(RetryRecord._fields) == text.count(b":") + 1 else None
