"""The whole suite in under 15 minutes: `make bench`. Writes RESULTS.md and its plots.

    python -m benchmarks.suite                      all of it, to benchmarks/
    python -m benchmarks.suite --quick              all of it in small, to build/bench/
    python -m benchmarks.suite --only latency       one section, to build/bench/

Each section starts the servers and pools that it needs. A section that fails is reported as failed; the
others still run. What was measured is written after each section, so an interrupted run leaves it.
"""

import argparse
import contextlib
import os
import platform
import sys
import time
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.goals import COLUMNS as GOAL_COLUMNS
from benchmarks.goals import Goal
from benchmarks.reference import libhiredis, program
from benchmarks.sections import MISSING, SECTIONS, Outcome, Scale
from benchmarks.tools import Report, end_on_sigterm, say
from supervisor import __version__

HERE = Path(__file__).parent
#: Where a run of the whole suite is kept, and any other run.
KEPT, TRIED = HERE, HERE.parent / "build" / "bench"
#: Of the sizes, and turns, with --quick.
QUICK, QUICK_TURNS = 0.1, 2
TURNS = 5
HEAD = """\
# Results

Written by `make bench`; what each figure means is in [README.md](README.md), what was tried in [NOTES.md](NOTES.md).

{surroundings}

Every ratio is of turns taken alternately in one run on one server: the **median**, with the lowest and the highest
in brackets. Compare ratios, not rates. C is a program on libhiredis that only reads and acks, with two batches in
flight; the redis-py loop is one pipeline a batch that does the same work as the handler."""


@dataclass
class Results:
    """RESULTS.md as far as it is known."""

    folder: Path
    surroundings: dict[str, str]
    #: Sections that are not measured yet.
    left: list[str]
    goals: list[Goal] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Where it is written."""
        return self.folder / "RESULTS.md"

    def write(self) -> None:
        """Write it; the plots are there already."""
        about = "\n".join(f"- {name}: {value}" for name, value in self.surroundings.items())
        parts = [HEAD.format(surroundings=about), *self.texts]
        if self.goals:
            parts.insert(1, f"## What is wanted\n\n{self.goal_report().markdown()}")
        if self.left:
            parts.append(f"Not measured: {', '.join(SECTIONS[name][0] for name in self.left)}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n\n".join(parts) + "\n")

    def goal_report(self) -> Report:
        """All goals so far."""
        return Report("What is wanted", GOAL_COLUMNS, rows=[goal.row() for goal in self.goals])


def surroundings(turns: int) -> dict[str, str]:
    """What all of it was measured on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "turns": str(turns),
        "machine": f"{os.cpu_count()} cores, {_processor()}, {platform.system()} {platform.machine()}",
        "versions": f"supervisor {__version__}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("redis", "hiredis", "uvloop", "pydantic")),
        "C": f"libhiredis {libhiredis()}" if program("drain") else MISSING,
        "load at the start": f"{os.getloadavg()[0]:.2f}",
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def section_text(title: str, about: str, outcome: Outcome, took_s: float) -> str:
    """A section of RESULTS.md."""
    parts = [f"## {title}", f"{about} Measured in {took_s:.0f} s."]
    parts += [f"![{title}](results/{name})" for name in outcome.plots]
    for report in outcome.reports:
        if report.where:
            parts.append(f"Measured on {report.where['server']}, durability {report.where['durability']}.")
        parts.append(report.markdown())
    return "\n\n".join(part for part in parts if part)


def measure_section(name: str, scale: Scale, results: Results) -> bool:
    """Measure one section and add it to the results; False when it failed."""
    title, measure = SECTIONS[name]
    begun_s = time.monotonic()
    try:
        outcome = measure(scale)
        for file, draw in outcome.plots.items():
            draw(results.folder / "results" / file)
    except Exception as error:
        traceback.print_exc()
        results.texts.append(f"## {title}\n\nThis section failed: `{type(error).__name__}`.")
        return False
    for report in outcome.reports:
        report.show(as_json=False)
    results.goals += outcome.goals
    results.texts.append(section_text(title, (measure.__doc__ or "").strip(), outcome, time.monotonic() - begun_s))
    return True


def run(results: Results, scale: Scale) -> list[str]:
    """Measure the sections that are left; return which of them failed."""
    begun_s = time.monotonic()
    names, failed = list(results.left), []
    for number, name in enumerate(names, 1):
        say(f"[{number}/{len(names)}, {(time.monotonic() - begun_s) / 60:.1f} min] {SECTIONS[name][0]}")
        if not measure_section(name, scale, results):
            failed.append(name)
        results.left.remove(name)
        results.surroundings["time"] = f"{(time.monotonic() - begun_s) / 60:.1f} minutes"
        results.write()
    return failed


def main() -> int:
    """0 when every section was measured."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, help=f"of each figure (default: {TURNS}, with --quick {QUICK_TURNS})")
    parser.add_argument("--only", action="append", choices=[*SECTIONS], help="only these sections")
    parser.add_argument("--quick", action="store_true", help="a tenth of each backlog, to try it out")
    options = parser.parse_args()
    turns = options.turns or (QUICK_TURNS if options.quick else TURNS)
    scale = Scale(turns, QUICK if options.quick else 1.0)
    folder = TRIED if options.only or options.quick else KEPT
    results = Results(folder, surroundings(turns), options.only or [*SECTIONS])
    failed = run(results, scale)
    results.goal_report().show(as_json=False)
    say(f"{results.path.relative_to(HERE.parent)} is written; it took {results.surroundings['time']}")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
