"""SIGTERM ends a benchmark with all that it has started."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
DRAIN = (sys.executable, "-m", "benchmarks.drain", "--count", "2000", "--rounds", "100000")


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_sigterm_to_the_group_of_a_benchmark_ends_its_pool_and_its_redis(tmp_path):
    """`timeout` sends it to the whole group."""
    said, started = tmp_path / "said", []
    with said.open("wb") as out:
        benchmark = subprocess.Popen(DRAIN, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0)
    try:
        eventually(lambda: "turn 1: pool" in said.read_text(), what="the pool has drained its first backlog")
        started = psutil.Process(benchmark.pid).children(recursive=True)
        names = {process.name() for process in started}
        assert {"keeper", "worker 0"} < names
        assert any("redis" in name or "valkey" in name for name in names), names
        os.killpg(benchmark.pid, signal.SIGTERM)
        assert benchmark.wait(30) == 128 + signal.SIGTERM, said.read_text()[-2000:]
        eventually(lambda: not any(map(runs, started)), what="all that it started is gone")
    finally:
        benchmark.kill()
        benchmark.wait()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
