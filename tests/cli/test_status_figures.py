"""The workers' counters show in `status --json` and for Prometheus."""

import re
from collections.abc import Callable
from typing import Any

from tests.http.service import browser
from tests.support.pool import Pool
from tests.support.servers import AnyServer
from tests.support.waiting import eventually

#: Waits for a file of the message's number; the slow one holds up the worker's own loop.
HANDLERS = """
    import asyncio, pathlib, time
    from supervisor import handler

    @handler("events", group="g")
    async def handle(message: dict[str, str]) -> None:
        pathlib.Path("began" + message["n"]).touch()
        while not pathlib.Path("go" + message["n"]).exists():
            await asyncio.sleep(0.01)
        if message["n"] == "slow":
            time.sleep(1.5)
"""
COUNTED = ("lost_claim", "trimmed", "reconnects", "adopted")


def test_every_figure_of_a_worker_is_shown(start_pool: Callable[..., Pool], redis_server: AnyServer) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, api=True)
    redis = redis_server.sync()

    def worker() -> dict[str, Any]:
        return pool.worker(0)

    eventually(lambda: worker()["activity"] == "idle")
    before = pool.status()["workers"][0]
    assert [before[key] for key in COUNTED] == [0, 0, 0, 0]
    assert before["batches"] == 0
    ids = {n: redis.xadd("events", {"n": n}) for n in ("lost", "gone", "slow")}
    eventually(lambda: all((pool.folder / f"began{n}").exists() for n in ids))
    eventually(lambda: worker()["activity"] == "work")
    assert worker()["activity_s"] >= 0

    # Another consumer has settled this one.
    redis.xack("events", "g", ids["lost"])
    (pool.folder / "golost").touch()
    eventually(lambda: worker()["lost_claim"] == 1)
    assert worker()["batches"] == 1

    # Of what the dead worker has in hand, one is no longer in the stream.
    redis.xdel("events", ids["gone"])
    pool.kill_worker()
    eventually(lambda: (worker()["adopted"], worker()["trimmed"]) == (1, 1))
    (pool.folder / "goslow").touch()
    eventually(lambda: worker()["loop_lag_ms_max"] > 500)
    eventually(lambda: redis.xpending("events", "g")["pending"] == 0)
    assert {key: pool.status()["workers"][0][key] for key in COUNTED[:2]} == {"lost_claim": 1, "trimmed": 1}
    redis.client_kill_filter(_type="normal", skipme=True)
    eventually(lambda: worker()["reconnects"] >= 1)

    with browser(pool.base_url) as web:
        wanted = re.compile('lost_claim"} 1\n.*supervisor_worker_reconnects_total{slot="0"} [1-9]', re.DOTALL)
        text = eventually(lambda: text if wanted.search(text := web.get("/metrics").text) else None)
    values = dict(re.findall(r'^(\S+)\{slot="0"\} (\S+)$', text, re.MULTILINE))
    assert 'supervisor_reclaimed_total{cause="child_exit"} 1' in text.splitlines()
    assert "supervisor_reclaim_delay_seconds_count 1" in text.splitlines()
    assert re.search(r'^supervisor_redis_operation_duration_seconds_count{operation="xack"} [1-9]', text, re.MULTILINE)
    assert 'supervisor_worker_restarts_total{slot="0",reason="signal"} 1' in text.splitlines()
    assert float(values["supervisor_trimmed_messages_total"]) == 1
    assert float(values["supervisor_worker_reconnects_total"]) >= 1
    assert float(values["supervisor_worker_loop_lag_seconds"]) > 0.5
