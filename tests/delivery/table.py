"""The table at the end of a session: what each case did to the pool and what became of the messages.

Rows travel with pytest's own reports, so that they arrive from the processes of pytest-xdist, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

PROPERTY = "delivery"
HEAD = (
    "case", "seed", "attempts", "acked", "done", "lost", "unexpected", "duplicated", "repeated", "recovered", "dead",
    "wait ms: median", "p99", "worst", "well after ms",
)  # fmt: skip


def rows(terminal: pytest.TerminalReporter) -> list[dict[str, Any]]:
    """All rows of the session, in the order of their cases."""
    found = []
    for reports in terminal.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                found += [row for name, row in report.user_properties if name == PROPERTY]
    return sorted(found, key=lambda row: (row["case"], row["seed"]))


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as text; bounds in brackets."""
    counts = (str(row[name]) for name in HEAD[1:8])
    waits = (f"{wait_ms:.1f}" for wait_ms in row["waits_ms"])
    repeated = f"{row['repeated']} (<= {row['repeated_max']})"
    well = "" if row["recovery_ms"] is None else f"{row['recovery_ms']:.0f} (<= {row['recovery_ms_max']:.0f})"
    return row["case"], *counts, repeated, str(row["recovered"]), str(row["dead"]), *waits, well


def show(terminal: pytest.TerminalReporter) -> None:
    """Write the table; nothing where no case ran."""
    lines = [HEAD, *map(cells, rows(terminal))]
    if len(lines) > 1:
        terminal.section("what became of the messages")
        for line in aligned(lines):
            terminal.write_line(line)


def aligned(lines: Iterable[tuple[str, ...]]) -> list[str]:
    """The first column to the left, the others to the right."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
