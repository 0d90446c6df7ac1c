"""Tables for people: as wide as the terminal, never cut in a pipe."""

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from unicodedata import east_asian_width

import click

from supervisor.text import printable

_KIB = 1024.0
GAP = "  "
#: A column of text is not made narrower than this.
TEXT_WIDTH_MIN = 12


def table_text(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    whole: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> str:
    """Format a table; the columns of `numbers` are right-aligned.

    On a terminal that is too narrow, columns of `drop` are left out, in this order, until the rest fits. Then
    text is folded, but numbers and the columns of `whole` are never cut.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(display_width, column)) for column in zip(columns, *cells, strict=True)]
    shown = list(range(len(columns)))
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        shown = fitting(columns, widths, drop, width)
        _narrow(widths, shown, [at for at in shown if columns[at] not in (*numbers, *whole)], width)
    right = [columns[at] in numbers for at in shown]
    head, *lines = (
        line
        for row in (columns, *cells)
        for line in _row([row[at] for at in shown], [widths[at] for at in shown], right)
    )
    return "\n".join([click.style(head, bold=True), "─" * _total(widths, shown), *lines])


def fitting(columns: Sequence[str], widths: Sequence[int], drop: Sequence[str], width: int) -> list[int]:
    """Return the indexes of the columns to show: all but as many of `drop`, from its start, as do not fit."""
    shown = list(range(len(columns)))
    for name in drop:
        if _total(widths, shown) <= width:
            break
        shown = [at for at in shown if columns[at] != name]
    return shown


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[at] for at in shown) + len(GAP) * (len(shown) - 1)


def _narrow(widths: list[int], shown: Sequence[int], foldable: Sequence[int], width: int) -> None:
    """Make the widest columns of text narrower until the table fits or all have the least width."""
    while _total(widths, shown) > width:
        widest = max(foldable, key=widths.__getitem__, default=0)
        if widest not in foldable or widths[widest] <= TEXT_WIDTH_MIN:
            return
        widths[widest] -= 1


def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    """Yield the lines of one row; folded text takes more than one."""
    folded = [
        textwrap.wrap(cell, width) if len(cell) > width else [cell] for cell, width in zip(cells, widths, strict=True)
    ]
    for parts in zip_longest(*folded, fillvalue=""):
        padded = [_padded(*column) for column in zip(parts, widths, right, strict=True)]
        yield GAP.join(padded).rstrip()


def _padded(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - display_width(text))
    return blanks + text if right else text + blanks


def display_width(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    return len(text) if text.isascii() else sum(1 + (east_asian_width(one) in "WF") for one in text)


def size(count: int | None) -> str:
    """Format bytes as `38.4 MiB`; `-` for None."""
    return "-" if count is None else f"{count / _KIB / _KIB:.1f} MiB"


def lag_text(lag: int, at_least: bool) -> str:
    """Format the lag, with `>=` when it is a lower bound."""
    return f">={lag:,}" if at_least else f"{lag:,}"
