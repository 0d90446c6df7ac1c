"""A release folder behind a link that is switched while the pool runs, and a configuration that goes missing."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import EXIT_FAILED, EXIT_OK
from tests.cli.run import run
from tests.support.pool import Pool
from tests.support.servers import AnyServer
from tests.support.waiting import eventually

HANDLERS = """
import pathlib
from supervisor import handler

@handler("events", group="g")
async def handle(fields: dict[str, str]) -> None:
    pathlib.Path({marks!r}, fields["n"]).write_text({release!r})
"""


class Releases:
    """Folders `releases/1`, `releases/2`, ... and the link `current` to one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marks = folder / "marks"
        self.marks.mkdir()
        self.current = folder / "current"

    def release(self, name: str, config: str) -> None:
        place = self.folder / "releases" / name
        place.mkdir(parents=True)
        (place / "config.toml").write_text(config)
        (place / "handlers.py").write_text(HANDLERS.format(marks=str(self.marks), release=name))

    def switch(self, name: str) -> None:
        draft = self.folder / "next"
        draft.symlink_to(Path("releases") / name)
        draft.replace(self.current)

    def handled_by(self, redis: Any, n: str) -> str:
        """Publish a message; the release whose code has handled it."""
        redis.xadd("events", {"n": n})
        return eventually(lambda: (self.marks / n).exists() and (self.marks / n).read_text())


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(tmp_path)


@pytest.fixture
def start(releases: Releases, redis_server: AnyServer) -> Iterator[Callable[..., Pool]]:
    pools: list[Pool] = []

    def start(config: str, **options: Any) -> Pool:
        for name in ("1", "2"):
            releases.release(name, config)
        releases.switch("1")
        handlers = (releases.current / "handlers.py").read_text()
        pools.append(Pool(releases.current, handlers, redis_url=redis_server.url, workers=1, config=config, **options))
        return pools[-1].start()

    yield start
    for pool in pools:
        pool.close()


def last_operation(pool: Pool) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        status = pool.ask("status")
        return status["last_operation"] if status["operation"] is None else None

    return eventually(ended, 20)


def test_a_restart_takes_the_new_release_when_the_state_is_shared(
    start: Callable[..., Pool], releases: Releases, redis_server: AnyServer
) -> None:
    pool = start('state_dir = "../../state"\n')
    redis, state_dir = redis_server.sync(), releases.folder / "state"
    assert releases.handled_by(redis, "a") == "1"
    releases.switch("2")
    done = run("restart", "--wait", cwd=releases.current, env={"SUPERVISOR_REDIS__URL": redis_server.url})
    assert done.returncode == EXIT_OK, done.stderr
    assert releases.handled_by(redis, "b") == "2"
    status = pool.wait_ready()
    assert (status["pid"], status["state_dir"]) == (pool.pid, str(state_dir))
    assert [path.name for path in releases.folder.rglob("control.sock")] == ["control.sock"]
    # A crashed worker and the next reload are of this release too, and the first one is not needed any more.
    shutil.rmtree(releases.folder / "releases" / "1")
    pool.kill_worker()
    pool.wait_ready()
    assert releases.handled_by(redis, "c") == "2"
    before = pool.pids()
    pool.send(signal.SIGHUP)
    eventually(lambda: pool.pids().keys() == before.keys() and pool.pids() != before, 20)
    assert last_operation(pool)["ok"] and releases.handled_by(redis, "d") == "2"


@pytest.mark.long
def test_a_restart_that_would_leave_the_state_behind_is_refused(
    start: Callable[..., Pool], releases: Releases, redis_server: AnyServer
) -> None:
    pool = start("")
    redis, own = redis_server.sync(), releases.folder / "releases" / "1" / ".supervisor"
    releases.switch("2")
    # The pool is found by its configuration, and goes on as it was.
    environment = {"SUPERVISOR_REDIS__URL": redis_server.url, "PWD": str(releases.current)}
    done = run("restart", cwd=releases.current, env=environment)
    assert done.returncode == EXIT_FAILED and "not restarted: nothing was changed" in done.stderr
    assert (
        f"keeps its state in {own}" in done.stderr
        and "Set state_dir to a folder that all releases share" in done.stderr
    )
    assert str(releases.folder / "releases" / "2" / ".supervisor") in done.stderr
    before = pool.pids()
    os.kill(pool.pid, signal.SIGHUP)
    eventually(lambda: "restart" in (pool.ask("status")["operation"] or {}).values(), interval_s=0.005)
    assert last_operation(pool)["ok"] is False and pool.pids() == before
    pool.kill_worker()
    eventually(lambda: run("status", cwd=releases.current, env=environment).returncode == EXIT_OK, 20)
    assert releases.handled_by(redis, "a") == "1"
    assert not (releases.folder / "releases" / "2" / ".supervisor").exists(), "nothing is split"
    releases.switch("1")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="gone"),
        pytest.param("", id="empty", marks=pytest.mark.long),
        pytest.param("  \n\n", id="blank", marks=pytest.mark.long),
        pytest.param("# nothing but this\n", id="comment", marks=pytest.mark.long),
    ],
)
def test_a_reload_without_its_configuration_is_refused(
    start_pool: Callable[..., Pool], redis_server: AnyServer, text: str | None
) -> None:
    config = '[pool]\nhost = "here"\n'
    pool = start_pool(HANDLERS.format(marks=".", release="1"), redis_url=redis_server.url, workers=1, config=config)
    paths, before = pool.paths, pool.pids()
    if text is None:
        pool.config.unlink()
    else:
        pool.config.write_text(text)
    pool.send(signal.SIGHUP)
    assert last_operation(pool)["ok"] is False
    words = "is gone" if text is None else "the file has no settings, and it had some when the pool was started"
    assert words in last_operation(pool)["error"] and str(pool.config) in last_operation(pool)["error"]
    assert pool.pids() == before and paths.control.exists()
    pool.config.write_text(config)
    pool.send(signal.SIGHUP)
    eventually(lambda: last_operation(pool)["ok"], 20)
    assert pool.pids() != before


def test_a_state_directory_that_was_removed_is_created_again(
    start_pool: Callable[..., Pool], redis_server: AnyServer
) -> None:
    pool = start_pool(HANDLERS.format(marks=".", release="1"), redis_url=redis_server.url, workers=1)
    token = pool.paths.token.read_text()
    shutil.rmtree(pool.paths.state_dir)
    eventually(pool.paths.control.exists, what="the control socket is there again")
    assert pool.paths.token.read_text() == token
    pool.kill_worker()
    pool.wait_ready()
    second = run("start", "--no-api", "--config", str(pool.config), cwd=pool.folder)
    assert second.returncode == 5 and "already runs" in second.stderr, "the lock is held again"
    assert len(pool.events("state directory created again")) == 1
