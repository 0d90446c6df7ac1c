"""What `supervisor top` shows on a terminal: a head with totals, a part that scrolls, and the keys.

Only text and numbers in here; `top` reads the keys and draws.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from supervisor.cli.status import TEXT_AT, groups_table, head_lines, workers_table
from supervisor.cli.tables import lag_text
from supervisor.text import duration_text

#: A key or its escape sequence -> what it does.
KEYS = {
    "q": "quit",
    "\x1b[A": "up",
    "k": "up",
    "\x1b[B": "down",
    "j": "down",
    "\x1b[5~": "page up",
    "b": "page up",
    "\x1b[6~": "page down",
    " ": "page down",
    "\x1b[H": "top",
    "\x1b[1~": "top",
    "g": "top",
    "\x1b[F": "bottom",
    "\x1b[4~": "bottom",
    "G": "bottom",
}
#: At least this many lines scroll, however long the head is.
BODY_LINES_MIN = 4


@dataclass(frozen=True, slots=True)
class View:
    """A screen full of lines, and where the scrolled part begins, within its limits."""

    lines: list[str]
    offset: int
    #: Lines of the part that scrolls.
    page: int


def commands_of(typed: str) -> list[str]:
    """Return what the typed keys do; unknown keys do nothing."""
    commands = []
    while typed:
        key = next((key for key in sorted(KEYS, key=len, reverse=True) if typed.startswith(key)), typed[0])
        commands += [KEYS[key]] if key in KEYS else []
        typed = typed[len(key) :]
    return commands


def moved(offset: int, command: str, page: int) -> int:
    """Return the new offset; `view` keeps it within its limits."""
    by = {"up": -1, "down": 1, "page up": 1 - page, "page down": page - 1, "top": -offset, "bottom": 1_000_000}
    return max(0, offset + by.get(command, 0))


def view(status: dict[str, Any], rates: Mapping[int, float], clock: str, offset: int, size: tuple[int, int]) -> View:
    """Lay the document of `status` out for a terminal of `size`. `rates` has messages per second by slot."""
    width, height = size
    first, *others = head_lines(status, live=True)
    about = [part for line in (f"{first}, {clock}", *others) for part in folded(line, width)]
    sums = [part for line in totals(status, rates) for part in folded(line, width)]
    room = max(1, height - BODY_LINES_MIN - len(sums) - 2)
    head = [*about[:room], *sums]
    body = [*about[room:], *([""] if about[room:] else []), *body_lines(status, rates)]
    page = max(1, height - len(head) - 2)
    offset = min(offset, max(0, len(body) - page))
    shown = body[offset : offset + page]
    keys = "q quits"
    if len(body) > page:
        keys = f"lines {offset + 1}-{offset + len(shown)} of {len(body)}  ↑ ↓ PgUp PgDn scroll  q quits"
    return View([*head, "", *shown, *[""] * (page - len(shown)), keys], offset, page)


def folded(line: str, width: int) -> list[str]:
    """Return a labelled line in parts that fit; only its label may have a colour."""
    plain = click.unstyle(line)
    if len(plain) <= width:
        return [line]
    indent = " " * min(TEXT_AT, width // 2)
    first, *more = textwrap.wrap(plain, width, subsequent_indent=indent, break_on_hyphens=False)
    return [line.removesuffix(plain[TEXT_AT:]) + first[TEXT_AT:], *more]


def body_lines(status: dict[str, Any], rates: Mapping[int, float]) -> list[str]:
    """Return the lines that scroll: the groups first, which tell more than the workers."""
    parts = []
    if status["groups"]:
        parts.append(groups_table(status["groups"]))
    if status["workers"]:
        parts.append(workers_table(status["workers"], rates))
    return "\n\n".join(parts).split("\n")


def totals(status: dict[str, Any], rates: Mapping[int, float]) -> list[str]:
    """Return the sums over all workers and over all groups, a line each."""
    workers, groups = status["workers"], status["groups"]
    lines = []
    if workers:
        ready = sum(worker["state"] == "READY" for worker in workers)
        lines.append(
            f"workers   {ready} of {len(workers)} ready, {sum(rates.values()):,.0f} per s,"
            f" {_sum(workers, 'in_flight')} running, {_sum(workers, 'done')} done, {_sum(workers, 'failed')} failed"
        )
    if groups:
        lag = lag_text(sum(group["lag"] for group in groups), any(group["lag_at_least"] for group in groups))
        oldest = duration_text(max((group["oldest_s"] or 0.0 for group in groups), default=0.0) or None)
        lines.append(
            f"groups    {len(groups)}, lag {lag}, {_sum(groups, 'pending')} pending,"
            f" {_sum(groups, 'retrying')} retrying, {_sum(groups, 'dead')} dead, oldest {oldest}"
        )
    return lines


def _sum(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return f"{sum(row[key] for row in rows):,}"
