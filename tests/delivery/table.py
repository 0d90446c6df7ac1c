"""The tables at the end of a session: what each case did to the pool and what became of the messages.

Rows travel with pytest's own reports, so that they arrive from the processes of pytest-xdist, too.
"""

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


def is_verdict(row: dict[str, Any]) -> bool:
    """Whether this row counts messages; otherwise it is one measurement."""
    return "attempts" in row


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as text; bounds in brackets."""
    counts = (str(row[name]) for name in HEAD[1:8])
    waits = (f"{wait_ms:.1f}" for wait_ms in row["waits_ms"])
    repeated = f"{row['repeated']} (<= {row['repeated_max']})"
    well = "" if row["recovery_ms"] is None else f"{row['recovery_ms']:.0f} (<= {row['recovery_ms_max']:.0f})"
    return row["case"], *counts, repeated, str(row["recovered"]), str(row["dead"]), *waits, well


def measured_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One measurement as text."""
    value = f"{row['value']:.0f}" if row["value"] >= 10 else f"{row['value']:.2g}"
    bound = "" if row["bound"] is None else f"<= {row['bound']:.4g}"
    return row["case"], str(row["seed"]), row["what"], value, row["unit"], bound


def show(terminal: pytest.TerminalReporter) -> None:
    """Write the tables; nothing where no case ran."""
    found = rows(terminal)
    verdicts = [cells(row) for row in found if is_verdict(row)]
    measured = [measured_cells(row) for row in found if not is_verdict(row)]
    tables = (
        ("what the delivery cases took", ("case", "seed", "measured", "value", "unit", "bound"), measured),
        ("what became of the messages", HEAD, verdicts),
    )
    for title, head, lines in tables:
        if lines:
            terminal.section(title)
            for line in aligned([head, *lines]):
                terminal.write_line(line)


def aligned(lines: Iterable[tuple[str, ...]]) -> list[str]:
    """The first column to the left, the others to the right."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
