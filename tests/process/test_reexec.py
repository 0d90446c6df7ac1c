"""The arbiter replaces its own image: what goes with it, and what happens when it can't."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor.errors import EXIT_OK
from tests.support.standins import HANDLERS, Standins
from tests.support.waiting import eventually

Make = Callable[..., Standins]


def last_operation(pool: Standins) -> dict[str, Any]:
    """How the restart ended, once it has."""

    def ended() -> dict[str, Any] | None:
        status = pool.ask("status")
        return status["last_operation"] if status["operation"] is None else None

    found = eventually(ended, 20)
    assert found is not None
    return found


def open_to_children(pid: int) -> list[str]:
    """The descriptors, but for the standard ones, that an exec would not close."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        flags = next(line for line in Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().splitlines() if "flags" in line)
        if int(fd.name) > 2 and not int(flags.split()[1], 8) & os.O_CLOEXEC:
            found.append(str(fd.readlink()))
    return found


@pytest.fixture
def lent_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that can be taken away."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    return link


def test_an_image_that_cannot_be_replaced_goes_on_as_it_was(standins: Make, lent_python: Path) -> None:
    pool = standins(workers=2, api=True)
    pool.python = str(lent_python)
    pool.start()
    before, services = pool.pids(), {s["name"]: s["pid"] for s in pool.status()["services"]}
    # Run by the preflight alone: that one still starts, and nothing can be started after it.
    (pool.folder / "handlers.py").write_text(f"{HANDLERS}\nimport os\nos.unlink({str(lent_python)!r})\n")
    pool.ask("restart")
    ended = last_operation(pool)
    assert not lent_python.is_symlink()
    assert (ended["kind"], ended["ok"]) == ("restart", False)
    assert "No such file or directory" in ended["error"]
    status = pool.status()
    assert (status["state"], pool.pids()) == ("healthy", before)
    assert {s["name"]: s["pid"] for s in status["services"]} == services
    assert open_to_children(pool.pid) == []

    os.kill(before[0], signal.SIGKILL)  # children, timers and the socket are served as before
    eventually(lambda: pool.worker(0)["restarts"] == 1)
    pool.ask("scale", n=3)
    pool.wait_ready()
    assert open_to_children(pool.worker(2)["pid"]) == []

    lent_python.symlink_to(sys.executable)
    (pool.folder / "handlers.py").write_text(HANDLERS)
    pool.send(signal.SIGHUP)
    eventually(lambda: pool.status()["operation"])
    assert last_operation(pool) == {"kind": "restart", "ok": True, "error": None}
    assert pool.pids()[1] != before[1]
    assert pool.stop() == EXIT_OK
    assert [note["terms"] for note in pool.notes("left")] == [1] * len(pool.notes("left"))


def test_a_signal_at_the_very_moment_is_not_lost(standins: Make) -> None:
    pool = standins(workers=2).start()
    judging, go = pool.folder / "judging", pool.folder / "go"
    (pool.folder / "handlers.py").write_text(
        f"{HANDLERS}\nimport os, pathlib, time\npathlib.Path({str(judging)!r}).write_text(str(os.getpid()))\n"
        f"while not os.path.exists({str(go)!r}):\n    time.sleep(0.01)\n"
    )
    pool.ask("restart")
    judge = psutil.Process(int(eventually(judging.read_text)))
    arbiter = psutil.Process(pool.pid)
    arbiter.suspend()
    eventually(lambda: arbiter.status() == psutil.STATUS_STOPPED)
    go.touch()
    eventually(lambda: judge.status() == psutil.STATUS_ZOMBIE)
    pool.send(signal.SIGTERM)  # comes when it is woken, together with the news that all is well with the new code
    arbiter.resume()
    assert pool.wait() == EXIT_OK
    assert not pool.processes()
    assert len(pool.notes("spawned")) == 2, "it drained, and started nobody anew"
