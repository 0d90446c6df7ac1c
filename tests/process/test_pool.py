"""The pool as a user runs it: real processes on real servers, killed while they work."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import scaled
from tests.support.pool import Pool
from tests.support.recording import RECORD, SIMPLE, records, seen
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]


def consumers(redis: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = redis.xinfo_consumers("events", "workers")
    return found


def test_an_embedded_server_serves_and_keeps_its_data(start_pool: StartPool) -> None:
    pool = start_pool(SIMPLE, workers=2)
    assert pool.command("publish", "events", "n=1").returncode == 0
    eventually(lambda: seen(pool) == {"1": 1})
    assert pool.stop() == 0
    pool.start()
    read = pool.command("read", "events", "--json")
    assert [json.loads(line)["fields"] for line in read.stdout.splitlines()] == [{"n": "1"}]
    assert seen(pool) == {"1": 1}


def test_ctrl_c_ends_everything_within_two_seconds(start_pool: StartPool) -> None:
    pool = start_pool(SIMPLE, workers=4)
    began_s = time.monotonic()
    os.killpg(pool.pid, signal.SIGINT)
    assert pool.wait() == 0
    assert (time.monotonic() - began_s) * 1000 < scaled(2000, pool.started_ms)
    pool.assert_nothing_left()


@pytest.mark.parametrize(("count", "every_s"), [(10_000, 0.1), pytest.param(100_000, 0.5, marks=pytest.mark.long)])
def test_nothing_is_lost_while_workers_are_killed_every_half_second(
    start_pool: StartPool, redis_server: Any, tmp_path: Path, count: int, every_s: float
) -> None:
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=4)
    feed = tmp_path / "feed.ndjson"
    feed.write_text("".join(f'{{"n": {n}}}\n' for n in range(count)))
    publish = subprocess.Popen(
        [sys.executable, "-m", "supervisor", "publish", "events", "--json", str(feed), "--quiet",
         "--config", str(pool.config), "--redis", redis_server.url],
        cwd=pool.folder, stdout=subprocess.DEVNULL, env={**os.environ, "REDIS_URL": redis_server.url},
    )  # fmt: skip
    killed: set[int] = set()
    redis = redis_server.sync()

    def settled() -> bool:
        if publish.poll() is None:
            return False
        [group] = redis.xinfo_groups("events")
        return bool(redis.xlen("events") == count and group["pending"] == 0 and group["lag"] == 0)

    until_s = time.monotonic() + 90
    while not settled():
        assert time.monotonic() < until_s, pool.output[-3000:]
        time.sleep(every_s)  # the rhythm of the fault, not a wait for an event
        # One that has done nothing would be replaced later each time.
        alive = [pid for pid in set(pool.pids().values()) - killed if (pool.folder / f"seen.{pid}").exists()]
        if alive and len(killed) < 20:
            pid = random.choice(alive)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    assert publish.returncode == 0
    assert killed
    counts = seen(pool)
    assert {str(n) for n in range(count)} == set(counts)
    eventually(
        lambda: sum(worker["restarts"] for worker in pool.status()["workers"]) >= len(killed), what="each is replaced"
    )


@pytest.mark.parametrize("every", [1, 10])
def test_slow_messages_are_distributed(start_pool: StartPool, redis_server: Any, every: int) -> None:
    pool = start_pool(
        RECORD
        + f"""
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        if int(message.fields["n"]) % {every} == 0:
            time.sleep(0.05)
        record(message.fields["n"])
""",
        redis_url=redis_server.url,
        workers=8,
    )
    redis = redis_server.sync()
    slow = 160
    count = slow * every
    pipeline = redis.pipeline()
    for n in range(count):
        pipeline.xadd("events", {"n": n})
    pipeline.execute()
    eventually(lambda: len(seen(pool)) == count, 60, 0.1)
    shares = Counter(pid for pid, text, _ in records(pool) if int(text) % every == 0)
    assert len(shares) == 8 and max(shares.values()) <= 1.6 * slow / 8


def test_a_few_slow_messages_among_quick_ones_are_distributed_too(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        if int(message.fields["n"]) % 10 == 0:
            time.sleep(0.2)
            record(message.fields["n"])
""",
        redis_url=redis_server.url,
        workers=8,
    )
    pipeline = redis_server.sync().pipeline()
    for n in range(400):
        pipeline.xadd("events", {"n": n})
    pipeline.execute()
    eventually(lambda: len(seen(pool)) == 40, 60, 0.1)
    shares = [len(path.read_text().splitlines()) for path in pool.folder.glob("seen.*")]
    assert len(shares) == 8
    assert max(shares) <= 10, "an even share would be five"


def test_a_burst_processes_the_backlog_and_exits(start_pool: StartPool, redis_server: Any) -> None:
    redis = redis_server.sync()
    for n in range(500):
        redis.xadd("events", {"n": n})
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=2, args=("--burst",), ready=False)
    assert pool.wait() == 0
    assert len(seen(pool)) == 500
    assert redis.xpending("events", "workers")["pending"] == 0


def test_each_message_reaches_one_worker_of_each_group(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="mail")
    async def mail(message: Message) -> None:
        record("mail:" + message.fields["n"])

    @handler("events", group="count")
    def count(message: dict[str, str]) -> None:
        record("count:" + message["n"])
""",
        redis_url=redis_server.url,
        workers=3,
    )
    redis = redis_server.sync()
    for n in range(100):
        redis.xadd("events", {"n": n})
    eventually(lambda: len(seen(pool)) == 200)
    assert set(seen(pool).values()) == {1}


def test_an_unreachable_redis_is_exit_code_3(start_pool: StartPool) -> None:
    pool = start_pool(
        SIMPLE, redis_url="redis://127.0.0.1:1", ready=False, env={"SUPERVISOR_REDIS__CONNECT_TIMEOUT_S": "0.5"}
    )
    assert pool.wait() == 3
    assert "127.0.0.1:1" in pool.output


def test_a_project_with_an_api_package_of_its_own_does_not_clash(start_pool: StartPool, tmp_path: Path) -> None:
    own = tmp_path / "project0" / "api"
    own.mkdir(parents=True)
    (own / "__init__.py").write_text("raise RuntimeError('the user\\'s own package was imported')\n")
    pool = start_pool(SIMPLE, workers=1)
    pool.command("publish", "events", "n=1")
    eventually(lambda: seen(pool) == {"1": 1})


def test_scaling_down_hands_waiting_retries_to_a_sibling(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="workers", retry_base_s=3600)
    async def fail(message: Message) -> None:
        record("call")
        raise ValueError("later")
""",
        redis_url=redis_server.url,
        workers=3,
    )
    redis = redis_server.sync()
    for n in range(60):
        redis.xadd("events", {"n": n})
    eventually(lambda: seen(pool)["call"] == 60)
    done = pool.command("scale", "1", "--wait")
    assert done.returncode == 0, done.stderr
    consumers = {c["name"]: c["pending"] for c in redis.xinfo_consumers("events", "workers")}
    assert list(consumers.values()) == [60]
    assert next(iter(consumers)).endswith(b":0")
    assert seen(pool)["call"] == 60


def test_messages_that_exceed_the_drain_of_a_removed_slot_go_to_a_sibling(
    start_pool: StartPool, redis_server: Any
) -> None:
    pool = start_pool(
        RECORD
        + """
    import asyncio, pathlib
    @handler("events", group="workers", timeout_s=600)
    async def handle(message: Message) -> None:
        record("call")
        while not pathlib.Path("release").exists():
            await asyncio.sleep(0.02)
        record("end")
""",
        redis_url=redis_server.url,
        workers=3,
        config="[pool]\ndrain_s = 0.5\n",
    )
    redis = redis_server.sync()
    for n in range(60):
        redis.xadd("events", {"n": n})
    eventually(lambda: seen(pool)["call"] == 60)
    done = pool.command("scale", "1", "--wait")
    assert done.returncode == 0, done.stderr
    # All messages of the two run again in the worker that stayed.
    eventually(lambda: {c["name"].decode()[-2:]: c["pending"] for c in consumers(redis)} == {":0": 60})
    (pool.folder / "release").touch()
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert seen(pool)["end"] == 60 < seen(pool)["call"]


def test_a_rolling_restart_loads_new_code_and_loses_nothing(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=2)
    arbiter, before = pool.pid, pool.pids()
    pool.command("publish", "events", "n=old")
    eventually(lambda: seen(pool)["old"] == 1)
    code = pool.folder / "handlers.py"
    code.write_text(code.read_text().replace('record(message.fields["n"])', 'record("new-" + message.fields["n"])'))
    done = pool.command("restart", "--wait")
    assert done.returncode == 0, done.stderr
    assert pool.status()["pid"] == arbiter
    assert not set(before.values()) & set(pool.pids().values())
    pool.command("publish", "events", "n=1")
    eventually(lambda: seen(pool)["new-1"] == 1)


@pytest.mark.long
def test_handed_over_messages_run_even_if_the_slot_is_wanted_again(start_pool: StartPool, redis_server: Any) -> None:
    """The pool grows again before the handover has ended; the receiving slot must still rescan its pending list."""
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="workers", retry_base_s=1)
    async def handle(message: Message) -> None:
        if message.deliveries == 1:
            raise ValueError("once")
        record(message.fields["n"])
""",
        redis_url=redis_server.url,
        workers=2,
        config='[pool]\nhost = "here"\n',
    )
    redis, caught = redis_server.sync(), 0
    for turn in range(1, 21):
        for n in range(40):
            redis.xadd("events", {"n": f"{turn}-{n}"})
        eventually(lambda: redis.xinfo_groups("events")[0]["lag"] == 0)
        pid = pool.pids()[1]
        pool.ask("scale", n=1)
        eventually(lambda: not [row for row in consumers(redis) if row["name"] == b"here:1"], interval_s=0.001)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            caught += pid in pool.pids().values()
            pool.ask("scale", n=2)
            os.kill(pid, signal.SIGCONT)
        pool.ask("scale", n=2)
        eventually(lambda turn=turn: len(seen(pool)) == 40 * turn, 30)  # type: ignore[misc]
        eventually(lambda: len(pool.pids()) == 2 and pool.worker(1)["state"] == "READY")
        if caught == 2:
            break
    assert caught, "the pool grew during the handover"
