"""Routers of a project in a pool: only the HTTP service imports them, and a bad one stops nothing that works."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.pool import Pool
from tests.support.waiting import eventually

HANDLERS = """
import sys
from supervisor import context, handler

@handler("orders", group="mail")
async def mail(message: dict[str, str]) -> None:
    await context().redis.rpush("imported", ",".join({"fastapi", "handlers.web"} & set(sys.modules)) or "neither")
"""
ROUTER = """
from fastapi import APIRouter
from supervisor.fastapi import PublisherDep

router = APIRouter()

@router.post("/orders")
async def create(publisher: PublisherDep) -> str:
    return (await publisher.publish("orders", {"item": "tea"})).id
"""
CONFIG = """
[api]
routers = ["handlers.web:router"]
"""


def package(folder: Path, router: str) -> None:
    """Handlers and a router as modules of one package."""
    (folder / "handlers").mkdir(parents=True, exist_ok=True)
    for name, text in {"__init__": "", "mail": HANDLERS, "web": router}.items():
        (folder / "handlers" / f"{name}.py").write_text(text)


def order(pool: Pool) -> None:
    """Post one order; the service may be starting still."""
    answer = httpx.post(f"{pool.base_url}/orders", trust_env=False, timeout=30)
    assert answer.status_code == 200, answer.text


@pytest.mark.long
def test_workers_skip_the_module_with_the_router(
    tmp_path: Path, redis_url: str, start_pool: Callable[..., Pool], redis_server: object
) -> None:
    package(tmp_path / "project0", ROUTER)
    pool = start_pool("", redis_url=redis_url, config=CONFIG, api=True)
    with redis_server.sync(decode_responses=True) as redis:  # type: ignore[attr-defined]
        order(pool)
        assert eventually(lambda: redis.lrange("imported", 0, -1)) == ["neither"]


def test_a_router_that_fails_in_the_service_ends_the_start(
    tmp_path: Path, redis_url: str, start_pool: Callable[..., Pool]
) -> None:
    package(tmp_path / "project0", f"{ROUTER}\nraise RuntimeError('no luck')\n")
    pool = start_pool("", redis_url=redis_url, config=CONFIG, api=True, ready=False)
    assert pool.wait() == 4
    assert "handlers/web.py:11: RuntimeError: no luck" in pool.output
    assert len(pool.events("service exited")) == 2  # the keeper, too: nothing was started again
    pool.assert_nothing_left(4)


def test_a_restart_with_a_bad_router_changes_nothing(
    tmp_path: Path, redis_url: str, start_pool: Callable[..., Pool]
) -> None:
    package(tmp_path / "project0", ROUTER)
    pool = start_pool("", redis_url=redis_url, config=CONFIG, api=True)
    order(pool)
    before = pool.pids()
    package(tmp_path / "project0", ROUTER.replace("/orders", "/health"))
    done = pool.command("restart", "--wait")
    assert done.returncode == 1
    assert "handlers/web.py:7: the path '/health' belongs to the HTTP service" in done.stderr
    assert pool.pids() == before
    order(pool)


@pytest.mark.long
def test_a_service_that_can_not_start_any_more_waits_for_the_next_restart(
    tmp_path: Path, redis_url: str, start_pool: Callable[..., Pool]
) -> None:
    package(tmp_path / "project0", ROUTER)
    pool = start_pool("", redis_url=redis_url, config=CONFIG, api=True)
    order(pool)
    # The check before a restart runs as `supervisor start`, and finds nothing.
    package(tmp_path / "project0", f"{ROUTER}\nimport sys\nassert 'api' not in sys.argv\n")
    done = pool.command("restart", "--wait")
    assert (done.returncode, "api can't start with the new configuration" in done.stderr) == (1, True), done.stderr
    status = eventually(lambda: found if "api can't start (config" in str(found := pool.status()) else None)
    assert status is not None and status["state"] == "degraded"
    started = len(pool.events("service started"))
    package(tmp_path / "project0", ROUTER)
    assert pool.command("restart", "--wait").returncode == 0
    order(pool)
    eventually(lambda: pool.status()["state"] == "healthy")
    assert len(pool.events("service started")) == started + 2  # the service and the keeper, once each
