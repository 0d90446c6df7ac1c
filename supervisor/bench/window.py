"""The rate of a drain between two shares of its backlog, from looks at how far it is. Does no I/O.

Neither the start nor the last acks are in the rate. Between two looks the count is taken to grow evenly.
"""

from dataclasses import dataclass

#: What is done when the window opens and when it closes, as shares of the backlog.
OPENS, CLOSES = 0.1, 0.9


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment."""

    at_s: float
    done: float
    #: CPU seconds that the measured processes have used so far.
    cpu_s: float = 0.0

    def between(self, later: "Look", done: float) -> "Look":
        """Return the moment at which `done` was reached, between this look and a later one."""
        share = (done - self.done) / (later.done - self.done) if later.done > self.done else 1.0
        return Look(self.at_s + share * (later.at_s - self.at_s), done, self.cpu_s + share * (later.cpu_s - self.cpu_s))


class Window:
    """Fed with looks until `complete`."""

    def __init__(self, entries: int) -> None:
        self._open, self._close = entries * OPENS, entries * CLOSES
        self._last: Look | None = None
        self._first_mark: Look | None = None
        self._last_mark: Look | None = None

    @property
    def complete(self) -> bool:
        """True when both ends were seen."""
        return self._last_mark is not None

    def saw(self, look: Look) -> None:
        """Add one look."""
        before = self._last or look
        if self._first_mark is None and look.done >= self._open:
            self._first_mark = before.between(look, self._open)
        if self._last_mark is None and look.done >= self._close:
            self._last_mark = before.between(look, self._close)
        self._last = look

    @property
    def rate(self) -> float:
        """The messages per second. Raises ValueError before the window is complete."""
        first, last = self._marks()
        return (last.done - first.done) / max(last.at_s - first.at_s, 1e-9)

    @property
    def cpu_us(self) -> float:
        """The microseconds of CPU per message. Raises ValueError before the window is complete."""
        first, last = self._marks()
        return (last.cpu_s - first.cpu_s) / (last.done - first.done) * 1e6

    def _marks(self) -> tuple[Look, Look]:
        if self._first_mark is None or self._last_mark is None:
            raise ValueError("the drain has not been seen to its end")
        return self._first_mark, self._last_mark
