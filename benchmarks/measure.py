"""Turns and what is made of them: ratios of neighbours, their median and spread."""

from collections.abc import Sequence

from benchmarks.contestants import Contestant, Turn
from benchmarks.tools import median, say


def take_turns(contestants: Sequence[Contestant], turns: int) -> dict[str, list[Turn]]:
    """A B C A B C ...: the turns of each, by title. One more turn goes before, which is not counted."""
    found: dict[str, list[Turn]] = {contestant.title: [] for contestant in contestants}
    for number in range(turns + 1):
        for contestant in contestants:
            turn = contestant.turn()
            if number:
                found[contestant.title].append(turn)
                say(f"  turn {number}: {contestant.title}: {turn.rate:,.0f}/s, {turn.cpu_us:.2f} µs of CPU")
    return found


def ratios(measured: Sequence[Turn], reference: Sequence[Turn]) -> list[float]:
    """Turn by turn."""
    return [one.rate / other.rate for one, other in zip(measured, reference, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Median, lowest and highest, for a table in Markdown."""
    return f"**{median(values):.2f}** ({min(values):.2f}-{max(values):.2f})"
