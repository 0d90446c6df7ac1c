"""What scripts may rely on: which exit code `status` and `stop` give, and what they say with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import EXIT_DEGRADED, EXIT_DOWN
from tests.cli.run import data, run
from tests.support.standins import Standins
from tests.support.waiting import eventually

Make = Callable[..., Standins]


@pytest.fixture
def standins(tmp_path: Path) -> Iterator[Make]:
    made: list[Standins] = []

    def make(**options: Any) -> Standins:
        made.append(Standins(tmp_path / f"p{len(made)}", **options))
        return made[-1]

    yield make
    for pool in made:
        with pool:
            pass


def test_a_supervisor_without_a_ready_worker_is_degraded_and_not_absent(standins: Make) -> None:
    pool = standins(workers=1).start()
    pool.order({"*": "crash"})
    os.kill(pool.pids()[0], signal.SIGKILL)
    eventually(lambda: pool.status()["state"] == "down")
    told = run("status", cwd=pool.folder)
    assert told.returncode == EXIT_DEGRADED
    assert told.stdout.startswith(f"down  pid {pool.pid}, up ")
    assert "supervisor start" not in told.stderr
    found = run("status", "--json", cwd=pool.folder)
    assert (found.returncode, data(found)["pid"]) == (EXIT_DEGRADED, pool.pid)


def test_only_where_no_supervisor_runs_status_says_how_to_start_one(tmp_path: Path) -> None:
    told = run("status", cwd=tmp_path, redis_url="redis://127.0.0.1:1")
    assert told.returncode == EXIT_DOWN
    assert "`supervisor start` starts it" in told.stderr
