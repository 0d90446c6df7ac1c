"""Tables and durations for people; rich is imported when a table is printed, and obeys NO_COLOR and pipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86400
_KIB = 1024.0


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()) -> None:
    """Print to stdout; the columns named in `numbers` are set to the right. Piped, no line is cut."""
    import sys

    sys.stdout.write(table_text(columns, rows, numbers=numbers) + "\n")


def table_text(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()) -> str:
    """The table as it would be printed."""
    import sys

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        right = column in numbers
        table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # A pipe has no width: whatever cuts or wraps there would break what reads it.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(width=width, soft_wrap=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").split("\n"))


def duration(seconds: float | None) -> str:
    """`45 s`, `3 m 20 s`, `2 h 5 m`, `4 d 3 h`; `-` for none."""
    if seconds is None:
        return "-"
    if seconds < 10:  # noqa: PLR2004 - where a decimal still tells something
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} m {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} m"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def size(count: int | None) -> str:
    """Bytes as `38.4 MiB`; `-` for none."""
    if count is None:
        return "-"
    return f"{count / _KIB / _KIB:.1f} MiB"


def lag_text(lag: int, at_least: bool) -> str:
    """The lag, with `>=` where it is a lower bound."""
    return f">={lag:,}" if at_least else f"{lag:,}"
