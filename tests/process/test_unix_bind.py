"""A pool whose HTTP service listens on a unix socket: it serves, the file is removed, a dead one is replaced."""

import signal
from collections.abc import Callable
from pathlib import Path

from supervisor.errors import EXIT_USAGE
from tests.support.pool import Pool
from tests.support.unix_http import unix_browser
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
HANDLERS = """
    from supervisor import handler

    @handler("orders", group="g")
    async def handle(message: dict[str, str]) -> None: ...
"""


def publish(path: Path) -> None:
    with unix_browser(path, "http://pool") as web:
        eventually(lambda: web.get("/readyz").status_code == 200, what="the service is ready")
        answer = web.post("/v1/streams/orders/messages", json={"n": 1})
        assert answer.status_code == 202, answer.text
        assert web.get(answer.headers["location"]).json()["fields"] == {"n": "1"}


def test_a_pool_serves_on_a_unix_socket(start_pool: StartPool, redis_url: str, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    config = f'[api]\nbind = "unix:{path}"'
    pool = start_pool(HANDLERS, redis_url=redis_url, workers=1, api=None, config=config)
    publish(path)
    assert pool.command("status").returncode == 0
    eventually(lambda: pool.worker(0)["done"] == 1)

    pool.send(signal.SIGKILL)
    pool.wait()
    pool.assert_nothing_left()
    assert path.is_socket(), "nobody was left to remove it"
    pool.start()
    publish(path)

    with Pool(tmp_path / "other", HANDLERS, redis_url=redis_url, workers=1, api=None, config=config) as other:
        assert other.start(ready=False).wait() == EXIT_USAGE
        assert f"error: unix:{path} is in use; use another --bind or [api] bind" in other.output
    publish(path)
    assert pool.stop() == 0
    assert not path.exists()
