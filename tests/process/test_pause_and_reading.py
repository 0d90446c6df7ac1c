"""A pause starts nothing on any worker; a pool whose workers can't read says so, with the group and the reason."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.support.pool import Pool
from tests.support.recording import RECORD, seen
from tests.support.servers import RedisServer, default_flavour
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
#: More plain functions than threads: some wait for one. All run until there is a file `go`.
HANDLERS = (
    RECORD
    + """
    import asyncio, pathlib, time
    @handler("slow", group="threads")
    def in_thread(message: Message) -> None:
        record(f"thread-{message.fields['n']}")
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
        record("done")

    @handler("other", group="threads")
    def in_another(message: Message) -> None:
        in_thread(message)

    @handler("failing", group="g", retry_base_s=0.05, retry_max_s=0.05, max_deliveries=1000)
    async def failing(message: Message) -> None:
        record("attempt")
        raise ValueError("again")
"""
)


def get(pool: Pool, address: str) -> httpx.Response:
    return httpx.get(f"{pool.base_url}{address}", timeout=30, trust_env=False, verify=False)


def started(pool: Pool) -> int:
    return sum(count for text, count in seen(pool).items() if text.startswith("thread-"))


def test_a_pause_starts_nothing_and_its_wait_ends_when_nothing_runs(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=2, api=True, config="consumer.threads = 2\n")
    redis = redis_server.sync()
    for n in range(6):
        redis.xadd("slow", {"n": n})
        redis.xadd("other", {"n": n + 100})
    redis.xadd("failing", {"n": 0})
    eventually(lambda: started(pool) == 4 and seen(pool)["attempt"] > 2, what="all threads are taken")
    assert pool.command("pause").returncode == 0
    pool.command("scale", "3", "--wait")
    for n in range(6, 12):
        redis.xadd("slow", {"n": n})
    late = pool.command("pause", "--wait", "--timeout", "0.3")
    assert late.returncode == 1 and "4 messages still running" in late.stderr
    before = seen(pool)["attempt"]  # by now all workers know of the pause
    status = pool.status()
    assert status["state"] == "paused" and status["paused_since"].endswith("Z")
    assert f"since {status['paused_since']}" in pool.command("status").stdout
    ready = get(pool, "/readyz?verbose")
    assert (ready.status_code, f"since {status['paused_since']}" in ready.text) == (503, True), ready.text
    assert get(pool, "/readyz?exclude=paused").status_code == 200
    (pool.folder / "go").touch()
    assert pool.command("pause", "--wait").returncode == 0
    assert seen(pool)["done"] == started(pool) == 4, "nothing was started in the pause"
    assert seen(pool)["attempt"] == before
    assert pool.command("resume").returncode == 0
    eventually(lambda: seen(pool)["done"] == 18 and seen(pool)["attempt"] > before)
    assert pool.status()["paused_since"] is None


SIMPLE = (
    RECORD
    + """
    @handler("events", group="mail")
    async def mail(message: Message) -> None:
        record(message.fields["n"])

    @handler("others", group="mail")
    async def other(message: Message) -> None:
        record(message.fields["n"])
"""
)


def test_a_group_that_is_not_read_is_named_with_the_reason(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=2, api=True, config="consumer.block_ms = 100\n")
    redis = redis_server.sync()
    redis.delete("events")
    redis.set("events", "no stream")
    eventually(
        lambda: [(one["stream"], one["workers"], one["of"]) for one in pool.status()["cut_off"]] == [("events", 2, 2)]
    )
    status = pool.status()
    reason = "every worker can't read events / mail: WRONGTYPE: the key is not a stream"
    assert status["state"] == "degraded" and reason in status["degraded_reasons"]
    assert reason in pool.command("status").stdout
    assert pool.command("status").returncode == 6
    assert pool.command("doctor").returncode == 1
    ready = eventually(lambda: a if (a := get(pool, "/readyz?verbose")).status_code == 503 else None)
    assert "events / mail is not read: WRONGTYPE" in ready.text
    series = 'supervisor_group_cut_off_workers{stream="events",group="mail"} 2'
    eventually(lambda: series in get(pool, "/metrics").text)
    redis.xadd("others", {"n": "meanwhile"})
    eventually(lambda: seen(pool)["meanwhile"] == 1)
    redis.delete("events")
    eventually(lambda: not pool.status()["cut_off"])
    redis.xadd("events", {"n": "after"})
    eventually(lambda: seen(pool)["after"] == 1)
    eventually(lambda: pool.status()["state"] == "healthy")


def test_a_group_whose_acks_are_refused_is_named_with_the_reason(start_pool: StartPool, hosted: RedisServer) -> None:
    pool = start_pool(SIMPLE, redis_url=hosted.url, workers=1, api=True)
    with hosted.sync() as redis:
        redis.execute_command("ACL", "SETUSER", "default", "-xack")
        redis.xadd("events", {"n": "1"})
        status = eventually(lambda: status if (status := pool.status())["cut_off"] else None)
        reason = "every worker can't settle messages of events / mail: NOPERM for acks, retries or dead letters"
        assert status["state"] == "degraded" and status["degraded_reasons"][0].startswith(reason)
        ready = eventually(lambda: a if (a := get(pool, "/readyz?verbose")).status_code == 503 else None)
        assert "events / mail is not settled: NOPERM" in ready.text
        redis.execute_command("ACL", "SETUSER", "default", "+xack")
        eventually(lambda: redis.xpending("events", "mail")["pending"] == 0, 40)
        eventually(lambda: pool.status()["state"] == "healthy")
    assert seen(pool)["1"] == 1


@pytest.fixture
def hosted() -> Iterator[RedisServer]:
    """A server whose CLIENT commands have another name."""
    with RedisServer(default_flavour(), options=["--rename-command", "CLIENT", ""]) as server:
        yield server


def test_a_server_without_client_commands_is_read(start_pool: StartPool, hosted: RedisServer) -> None:
    pool = start_pool(SIMPLE, redis_url=hosted.url, workers=1)
    with hosted.sync() as redis:
        redis.xadd("events", {"n": "1"})
        eventually(lambda: seen(pool)["1"] == 1)
    assert pool.stop() == 0


def test_the_boot_check_reads_as_a_worker_does(start_pool: StartPool, hosted: RedisServer) -> None:
    with hosted.sync() as redis:
        redis.execute_command("ACL", "SETUSER", "default", "-xreadgroup")
    pool = start_pool(SIMPLE, redis_url=hosted.url, workers=1, ready=False)
    assert pool.wait() == 3
    assert "xreadgroup" in pool.output and "README" in pool.output
