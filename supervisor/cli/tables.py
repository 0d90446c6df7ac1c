"""Tables for people; rich is imported when a table is printed, and obeys NO_COLOR and pipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_KIB = 1024.0
#: A pipe has no width: whatever cuts or wraps there would break what reads it.
PIPE_WIDTH = 10_000
#: Between two columns.
GAP = 2
#: A text is not folded into less.
TEXT_WIDTH_MIN = 12


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    whole: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> None:
    """Print to stdout; the columns named in `numbers` are set to the right. Piped, no line is cut."""
    import sys

    sys.stdout.write(table_text(columns, rows, numbers=numbers, whole=whole, drop=drop) + "\n")


def table_text(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    whole: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> str:
    """The table as it would be printed. On a terminal that is too narrow, the columns of `drop` are left out, first
    ones first, until the rest fits; then texts are folded, but a number, or what `whole` names, is never cut."""
    import sys

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    widths = [max(map(len, [column, *cells])) for column, cells in zip(columns, _cells(columns, rows), strict=True)]
    shown = list(range(len(columns)))
    width = PIPE_WIDTH
    if sys.stdout.isatty():
        width = Console().width
        shown = fitting(columns, widths, drop, width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for at in shown:
        right = columns[at] in numbers
        uncut = right or columns[at] in whole
        least = widths[at] if uncut else min(widths[at], TEXT_WIDTH_MIN)
        table.add_column(
            columns[at], justify="right" if right else "left", no_wrap=uncut, overflow="fold", min_width=least
        )
    for row in rows:
        table.add_row(*(Text(row[at]) for at in shown))
    least = sum(column.min_width or 0 for column in table.columns) + GAP * (len(shown) - 1)
    console = Console(width=max(width, least), soft_wrap=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").split("\n"))


def fitting(columns: Sequence[str], widths: Sequence[int], drop: Sequence[str], width: int) -> list[int]:
    """The places of the columns to show: all but the first few of `drop`, so that they fit, if that is enough."""
    shown = list(range(len(columns)))
    for name in drop:
        if sum(widths[at] for at in shown) + GAP * (len(shown) - 1) <= width:
            break
        shown = [at for at in shown if columns[at] != name]
    return shown


def _cells(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[row[at] for row in rows] for at in range(len(columns))]


def size(count: int | None) -> str:
    """Bytes as `38.4 MiB`; `-` for none."""
    if count is None:
        return "-"
    return f"{count / _KIB / _KIB:.1f} MiB"


def lag_text(lag: int, at_least: bool) -> str:
    """The lag, with `>=` where it is a lower bound."""
    return f">={lag:,}" if at_least else f"{lag:,}"
