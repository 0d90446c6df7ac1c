"""What is wanted of the pool, and whether a run of the suite has shown it."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measure import spread
from benchmarks.tools import median

COLUMNS = ("", "wanted", "measured", "met")


@dataclass(frozen=True)
class Goal:
    """A bound, and the figure of each turn. The median counts."""

    what: str
    bound: float
    #: Empty where they could not be measured.
    values: Sequence[float]
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the median keeps to the bound."""
        middle = median(self.values)
        return middle <= self.bound if self.at_most else middle >= self.bound

    def row(self) -> list[object]:
        """For a table with COLUMNS."""
        wanted = f"at {'most' if self.at_most else 'least'} {self.bound:g}"
        if not self.values:
            return [self.what, wanted, "not available", ""]
        return [self.what, wanted, spread(self.values), "yes" if self.met else "no"]
