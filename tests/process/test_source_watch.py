"""`supervisor start --reload`: what is saved runs soon, once, without a loss; what is broken changes nothing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supervisor.errors import EXIT_OK
from tests.support.pool import Pool
from tests.support.servers import AnyServer
from tests.support.waiting import eventually

HANDLERS = """
import pathlib
from supervisor import handler

VERSION = "1"

@handler("events", group="g")
async def handle(fields: dict[str, str]) -> None:
    with open("handled", "a") as file:
        file.write(fields["n"] + " " + VERSION + "\\n")
"""


def save(pool: Pool, version: str, more: str = "") -> None:
    """Save the handlers as an editor does: the file is replaced."""
    draft = pool.folder / "draft"
    draft.write_text(HANDLERS.replace('"1"', f'"{version}"') + more)
    draft.replace(pool.folder / "handlers.py")


def handled(pool: Pool) -> dict[str, str]:
    path = pool.folder / "handled"
    lines = path.read_text().splitlines() if path.exists() else []
    found = dict(line.split() for line in lines)
    assert len(found) == len(lines), "none ran twice"
    return found


def version_now(pool: Pool, redis: Any, count: list[int]) -> str | None:
    """The version that handles a message which is published now."""
    count[0] += 1
    name = str(count[0])
    redis.xadd("events", {"n": name})
    return eventually(lambda: handled(pool).get(name), interval_s=0.005)


def test_files_that_are_saved_under_load(start_pool: Callable[..., Pool], redis_server: AnyServer) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=2, args=("--reload",))
    redis, count = redis_server.sync(), [0]
    arbiter, before = pool.pid, pool.pids()
    assert version_now(pool, redis, count) == "1"
    save(pool, "2")
    eventually(lambda: version_now(pool, redis, count) == "2", 20, 0.02)
    eventually(lambda: len(pool.events("restarted")) == 1)
    # Ten saves in a second are one restart, and the last one counts, though all have the same length.
    for version in "3456789abc":
        save(pool, version)
        time.sleep(0.1)
    eventually(lambda: version_now(pool, redis, count) == "c", 20, 0.02)
    # A gap between two saves may have been long enough for a restart on a busy machine.
    eventually(lambda: len(pool.events("restarted")) >= 2 and pool.ask("status")["operation"] is None)
    restarts = len(pool.events("restarted"))
    assert restarts <= 5, "not one for each"
    # A broken file changes nothing, and is shown with its traceback until it is mended.
    running = pool.pids()
    save(pool, "d", "raise RuntimeError('broken on purpose')\n")
    failed = eventually(lambda: pool.events("restart failed"), 20)[0]
    assert "Traceback" in failed["exception"] and "broken on purpose" in failed["exception"]
    assert f'File "{pool.folder}/handlers.py"' in failed["exception"]
    assert "handlers.py" in pool.ask("status")["last_operation"]["error"]
    assert pool.pids() == running and version_now(pool, redis, count) == "c"
    save(pool, "e")
    eventually(lambda: version_now(pool, redis, count) == "e", 20, 0.02)
    eventually(lambda: len(pool.events("restarted")) > restarts)
    assert pool.pid == arbiter and not set(pool.pids().values()) & set(before.values())
    eventually(lambda: len(handled(pool)) == count[0], what="nothing is lost")
    assert not (pool.folder / "__pycache__").exists()
    assert pool.stop() == EXIT_OK, "the watcher ends too"


def test_files_that_are_no_source_restart_nothing(start_pool: Callable[..., Pool], redis_server: AnyServer) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, args=("--reload",))
    save(pool, "2")
    eventually(lambda: len(pool.events("restarted")) == 1 and pool.ask("status")["operation"] is None)
    for name in ("notes.txt", "data.json", "handlers.py.swp"):
        (pool.folder / name).write_text("x")
    Path(pool.folder / "__pycache__").mkdir()
    (pool.folder / "__pycache__" / "x.py").touch()
    time.sleep(2)  # the watcher would have noticed by then
    assert pool.ask("status")["operation"] is None and len(pool.events("restarted")) == 1
