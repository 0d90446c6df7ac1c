"""What all benchmarks share: the server they start, the projects they run, the report they print.

A figure is only ever printed together with the server, the durability and the machine it was
measured on, and a ratio only between figures of one run.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supervisor.broker.connect import client, describe
from tests.support.flavours import Flavour
from tests.support.pool import Pool
from tests.support.servers import RedisServer

STREAM = "events:bench"
#: The host's name in consumer names, so that pending lists can be asked for by slot.
HOST = "bench"


def arguments(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="server binary to start (default: the first that is found)")
    parser.add_argument(
        "--fsync",
        choices=("none", "everysec", "always"),
        default="none",
        help="durability of the server (default: none)",
    )
    parser.add_argument("--rounds", type=int, default=rounds, help=f"how often to measure (default: {rounds})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def end_on_sigterm() -> None:
    """From now on SIGTERM ends all that was started, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextmanager
def server(options: argparse.Namespace) -> Iterator[RedisServer]:
    """A fresh server of our own with the durability asked for."""
    with server_of(options.server, options.fsync) as started:
        yield started


def server_of(binary: str | Flavour | None = None, fsync: str = "none") -> RedisServer:
    """A server of that binary, on a unix socket and on TCP; a context manager."""
    words = () if fsync == "none" else ("--appendfsync", fsync)
    return RedisServer(binary, appendonly=fsync != "none", tcp=True, options=words)


@contextmanager
def project(handlers: str, *, host: str = HOST, config: str = "", **options: Any) -> Iterator[Pool]:
    """A pool on a project folder of its own, not yet started; ended and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with Pool(folder, handlers, config=f'[pool]\nhost = "{host}"\n{config}', **options) as pool:
            yield pool
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Report:
    """A table with its surroundings."""

    title: str
    columns: Sequence[str]
    #: What the figures were measured on: server, durability, machine.
    where: dict[str, str] = field(default_factory=dict)
    rows: list[list[object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def measured_on(self, started: RedisServer) -> None:
        """Ask the server what it is."""

        async def ask() -> tuple[str, str]:
            redis = client(started.url)
            try:
                found = await describe(redis)
            finally:
                await redis.aclose()
            return found.version, found.durability

        version, durability = asyncio.run(ask())
        self.where = {
            "server": version,
            "durability": durability,
            "python": platform.python_version(),
            "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        }

    def row(self, *cells: object) -> None:
        """Add a row."""
        self.rows.append(list(cells))

    def show(self, *, as_json: bool) -> None:
        """Print it."""
        if as_json:
            names = [column or "what" for column in self.columns]
            rows = [dict(zip(names, row, strict=True)) for row in self.rows]
            print(json.dumps({"title": self.title, **self.where, "rows": rows, "notes": self.notes}, indent=2))
            return
        print(f"{self.title}\n  " + "; ".join(f"{name}: {value}" for name, value in self.where.items()) + "\n")
        texts = [list(self.columns)] + [[_text(cell) for cell in row] for row in self.rows]
        widths = [max(len(row[index]) for row in texts) for index in range(len(self.columns))]
        for row in texts:
            print(
                "  ".join(
                    cell.ljust(w) if i == 0 else cell.rjust(w)
                    for i, (cell, w) in enumerate(zip(row, widths, strict=True))
                )
            )
        print("".join(f"\n{note}" for note in self.notes) + "\n")

    def markdown(self) -> str:
        """The table and its notes as Markdown."""
        texts = [list(self.columns), ["---"] + ["--:"] * (len(self.columns) - 1)]
        texts += [[_text(cell) for cell in row] for row in self.rows]
        table = "\n".join("| " + " | ".join(row) + " |" for row in texts)
        return table + "".join(f"\n\n{note}" for note in self.notes)


def median(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
