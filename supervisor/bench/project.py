"""A pool that the benchmark starts: a project in a temporary folder, `supervisor start` on it, its status."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.control.client import request
from supervisor.errors import SupervisorError
from supervisor.settings.load import load
from supervisor.settings.paths import pool_paths

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

READY_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1

#: The groups are those of GROUPS. `latency` writes one line a message: nanoseconds from publishing to its first line.
_HANDLERS = """
import os
import time

from supervisor import Message, handler
from supervisor.bench.redis_py_loop import UserCreated

STREAM = {stream!r}
LATENCIES = os.open({latencies!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@handler(STREAM, group="message")
async def message(event: Message) -> None:
    pass

@handler(STREAM, group="dict")
async def mapping(event: dict[str, str]) -> None:
    pass

@handler(STREAM, group="model")
async def model(event: UserCreated) -> None:
    pass

@handler(STREAM + ":latency", group="latency")
async def latency(event: Message) -> None:
    now_ns = time.monotonic_ns()
    os.write(LATENCIES, f"{{now_ns - int(event.fields['sent_ns'])}}\\n".encode())
"""
GROUPS = ("message", "dict", "model")


class BenchPool:
    """A pool of the benchmark that runs."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self._folder, self._process = folder, process
        self._paths = pool_paths(load(folder / "config.toml", environ={}).settings)

    @property
    def runs(self) -> bool:
        """True while its arbiter is alive."""
        return self._process.returncode is None

    def latencies_ns(self) -> list[int]:
        """Return what the `latency` handler has noted so far."""
        return [int(line) for line in (self._folder / "latencies").read_text().splitlines()]

    async def wait_ready(self, workers: int) -> None:
        """Wait until all workers are READY. Raises SupervisorError with the pool's log where that takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_LIMIT_S):
                while self.runs:
                    with contextlib.suppress(SupervisorError, OSError):
                        states = [worker["state"] for worker in self._status()["workers"]]
                        if states == ["READY"] * workers:
                            return
                    await asyncio.sleep(_POLL_S)
        said = (self._folder / "log").read_text(errors="replace")[-2000:]
        raise SupervisorError(f"the benchmark's pool did not become ready:\n{said}")

    async def stop(self) -> None:
        """Drain the pool; kill it if that takes too long."""
        if not self.runs:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _status(self) -> dict[str, Any]:
        return request(self._paths, "status", patience_s=0.5)


@asynccontextmanager
async def bench_pool(url: str, stream: str, host: str, workers: int) -> AsyncIterator[BenchPool]:
    """Start a pool whose consumers are named after `host`, with all workers READY; stop and remove it at the end."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="supervisor-bench-"))
    except OSError as error:
        raise SupervisorError(f"no folder for the benchmark's pool: {error.strerror}; TMPDIR may name one") from None
    try:
        latencies = folder / "latencies"
        latencies.touch()
        (folder / "config.toml").write_text(f'[pool]\nhost = "{host}"\nworkers = {workers}\n[api]\nenabled = false\n')
        (folder / "handlers.py").write_text(_HANDLERS.format(stream=stream, latencies=str(latencies)))
        ours = {name: value for name, value in os.environ.items() if not name.startswith("SUPERVISOR_")}
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "supervisor", "start", "--config", str(folder / "config.toml")),
                env=ours | {"SUPERVISOR_REDIS__URL": url},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        pool = BenchPool(folder, process)
        try:
            await pool.wait_ready(workers)
            yield pool
        finally:
            await pool.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _die_with_parent() -> None:
    """In the child: have a killed benchmark leave no pool behind. Only Linux can do this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
