"""Workers' memory is measured by the process that is asked for it, never by the arbiter, and without Redis."""

from collections.abc import Callable

import pytest

from tests.http.service import STREAM, browser
from tests.support.pool import Pool
from tests.support.servers import AnyServer
from tests.support.waiting import eventually

HANDLERS = f"""
from supervisor import handler

@handler("{STREAM}", group="mail")
async def mail(message: dict[str, str]) -> None: ...
"""


@pytest.mark.long
def test_memory_is_shown_with_redis_and_without(start_pool: Callable[..., Pool], redis_server: AnyServer) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=2, api=True)
    assert not {"rss_bytes", "pss_bytes"} & set(pool.ask("status")["workers"][0]), "the arbiter reads no smaps"
    with browser(pool.base_url) as web:

        def has_memory() -> bool:
            workers = web.get("/v1/workers").json()["workers"]
            return len(workers) == 2 and all(w["rss_bytes"] > w["pss_bytes"] > 1_000_000 for w in workers)

        eventually(has_memory)
        assert web.get("/metrics").text.count("supervisor_worker_resident_memory_bytes{") == 2
        redis_server.pause()
        try:
            eventually(lambda: web.get("/health").json()["redis"]["error"] == "no answer in time")
            eventually(has_memory)
        finally:
            redis_server.resume()
