"""The arbiter replaces its own image: what it keeps, what happens if the exec fails, and what it refuses."""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor.errors import EXIT_OK
from tests.support.pool import Pool
from tests.support.servers import AnyServer
from tests.support.standins import HANDLERS, ROOT, Standins
from tests.support.waiting import eventually

Make = Callable[..., Standins]


def last_operation(pool: Standins | Pool) -> dict[str, Any]:
    """Wait for the end of the restart and return its result."""

    def ended() -> dict[str, Any] | None:
        status = pool.ask("status")
        return status["last_operation"] if status["operation"] is None else None

    found = eventually(ended, 20)
    assert found is not None
    return found


def open_to_children(pid: int) -> list[str]:
    """Return the descriptors, except for the standard ones, that an exec would not close."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            lines = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().splitlines()
            flags = int(next(line.split()[1] for line in lines if line.startswith("flags:")), 8)
            if int(fd.name) > 2 and not flags & os.O_CLOEXEC:
                found.append(str(fd.readlink()))
    return found


@pytest.fixture
def lent_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that the test can remove."""
    own = tmp_path / "lib"
    own.mkdir()
    (own / "supervisor").symlink_to(ROOT / "supervisor")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(own), *(path for path in sys.path if "packages" in path)]))
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    return link


def test_a_failed_exec_changes_nothing(standins: Make, lent_python: Path) -> None:
    pool = standins(workers=2, api=True)
    pool.python = str(lent_python)
    pool.start()
    before, services = pool.pids(), {s["name"]: s["pid"] for s in pool.status()["services"]}
    # Only the preflight runs this code: it still starts, and no later process can.
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
    eventually(lambda: last_operation(pool)["ok"])
    assert pool.pids()[1] != before[1]
    assert pool.stop() == EXIT_OK
    assert [note["terms"] for note in pool.notes("left")] == [1] * len(pool.notes("left"))


def test_a_signal_during_the_exec_is_not_lost(standins: Make) -> None:
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
    assert len(pool.notes("spawned")) == 2, "it drained and started no new worker"


@pytest.fixture
def own_copy(tmp_path: Path, redis_server: AnyServer) -> Iterator[Pool]:
    """A pool with a copy of the supervisor in its folder, which `-m supervisor` finds first."""
    pool = Pool(tmp_path / "project", HANDLERS, redis_url=redis_server.url, workers=2)
    shutil.copytree(ROOT / "supervisor", pool.folder / "supervisor", ignore=shutil.ignore_patterns("__pycache__"))
    with pool.start():
        yield pool


@pytest.mark.parametrize(
    ("file", "line", "more"),
    [
        ("shared_state.py", "    BACKLOG_NS = 11\n", "    ANOTHER_WORD = 63\n"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("core/slot.py", "    incarnation: int = 0\n", "    another_field: int = 0\n"),
                ("core/restart_policy.py", '    PLANNED = "planned"\n', '    ANOTHER_KIND = "another"\n'),
                ("arbiter/reload.py", "    configured_workers: int\n", "    another_field: int\n"),
            )
        ),
    ],
)
def test_a_supervisor_with_another_layout_is_refused(own_copy: Pool, file: str, line: str, more: str) -> None:
    before = own_copy.pids()
    source = own_copy.folder / "supervisor" / file
    assert source.read_text().count(line) == 1
    source.write_text(source.read_text().replace(line, line + more))
    done = own_copy.command("restart", "--wait")
    assert done.returncode == 1
    assert "another version of supervisor" in done.stderr and "stop and start it for that" in done.stderr
    assert "another version of supervisor" in last_operation(own_copy)["error"]
    assert own_copy.pids() == before and own_copy.wait_ready()["pid"] == own_copy.pid


UNSTEADY = """
import pathlib
from supervisor import handler

folder = pathlib.Path(__file__).parent
with (folder / "imports").open("a") as file:
    file.write(".")
if (folder / "broken").exists() and len((folder / "imports").read_text()) % 2:
    raise ImportError("half of it is written")

@handler("events", group="g")
async def handle(fields: dict[str, str]) -> None:
    (folder / fields["n"]).touch()
"""


def test_code_that_breaks_after_its_check_keeps_the_workers(
    start_pool: Callable[..., Pool], redis_server: AnyServer
) -> None:
    """The arbiter imports at the start, the preflight then, and after it the successor, which fails."""
    pool = start_pool(UNSTEADY, redis_url=redis_server.url, workers=2, api=True)
    redis, before = redis_server.sync(), pool.pids()
    broken = pool.folder / "broken"
    broken.touch()
    pool.send(signal.SIGHUP)
    eventually(lambda: pool.events("restart held"), 20)
    status = eventually(lambda: pool.ask("status") if pool.ask("status")["state"] == "degraded" else None)
    assert status["pid"] == pool.pid and pool.pids() == before
    assert any("half of it is written" in reason for reason in status["degraded_reasons"])
    assert status["consumers"] == [["events", "g"]]
    redis.xadd("events", {"n": "a"})
    eventually((pool.folder / "a").exists, what="the workers work")
    # One that crashes now can't be replaced, until the code can be loaded.
    victim = pool.kill_worker(0)
    redis.xadd("events", {"n": "b"})
    eventually((pool.folder / "b").exists)
    broken.unlink()
    eventually(lambda: pool.events("restarted"), 30)
    after = pool.wait_ready()
    assert after["pid"] == pool.pid and victim not in pool.pids().values()
    assert not set(pool.pids().values()) & set(before.values())
    redis.xadd("events", {"n": "c"})
    eventually((pool.folder / "c").exists)


def test_a_pool_that_is_held_can_be_stopped(standins: Make) -> None:
    pool = standins(workers=2).start()
    (pool.folder / "handlers.py").write_text(f"{HANDLERS}\nimport os\nos.unlink(__file__)\n")
    pool.send(signal.SIGHUP)
    eventually(lambda: pool.events("restart held"), 20)
    assert "there is no module 'handlers'" in pool.events("restart held")[0]["error"]
    assert pool.stop() == EXIT_OK
