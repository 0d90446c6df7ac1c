"""A message that ends the process that runs it."""

import contextlib
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.errors import EXIT_DRAIN
from supervisor.keys import crashes_key, dead_key, isolated_key
from tests.process.test_pool import RECORD, seen
from tests.support.pool import Pool
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]


def test_a_lone_killer_has_three_deaths(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        record("call")
        os._exit(3)
""",
        redis_url=redis_server.url,
        workers=2,
    )
    redis = redis_server.sync()
    redis.xadd("events", {"n": "1"})
    eventually(lambda: redis.xlen(dead_key("events", "workers")) == 1, 20)
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert seen(pool)["call"] == 3
    ((_, letter),) = redis.xrange(dead_key("events", "workers"))
    assert letter[b"reason"] == b"crashed the worker"


def test_what_takes_the_whole_pool_with_it_is_found_too(start_pool: StartPool, redis_server: Any) -> None:
    """A container that runs out of memory is killed as one: no arbiter knows what its worker had in hand."""
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        if message.fields["n"] == "5":
            record("death")
            os.kill(os.getppid(), 9)
            os._exit(9)
        record(message.fields["n"])
""",
        redis_url=redis_server.url,
        workers=1,
    )
    redis = redis_server.sync()
    pipe = redis.pipeline()
    for n in range(20):
        pipe.xadd("events", {"n": n})
    pipe.execute()
    for _ in range(10):
        with contextlib.suppress(AssertionError):
            eventually(lambda: redis.xlen(dead_key("events", "workers")) or pool.exit_code() is not None, 20)
        if redis.xlen(dead_key("events", "workers")):
            break
        assert pool.wait() == -9
        eventually(lambda: not pool.processes())
        pool.start(ready=False)
    ((_, letter),) = redis.xrange(dead_key("events", "workers"))
    assert letter[b"field:n"] == b"5"
    others = {str(n) for n in range(20) if n != 5}
    eventually(lambda: set(seen(pool)) == {*others, "death"} and redis.xinfo_groups("events")[0]["lag"] == 0)
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    deaths = seen(pool)["death"]
    assert deaths <= 6, "three to be suspected, three alone"
    assert not redis.exists(isolated_key("events", "workers"))


@pytest.mark.long
def test_a_long_job_that_meets_many_stops_is_no_crash(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(
        RECORD
        + """
    import asyncio
    @handler("events", group="workers", timeout_s=600)
    async def handle(message: Message) -> None:
        record("call")
        if not os.path.exists("go"):
            await asyncio.sleep(600)
""",
        redis_url=redis_server.url,
        workers=1,
        config="[pool]\ndrain_s = 0.3\n",
    )
    redis = redis_server.sync()
    redis.xadd("events", {"n": "1"})
    for times in range(1, 6):
        eventually(lambda times=times: seen(pool)["call"] == times)
        pool.send(signal.SIGTERM)
        assert pool.wait() == EXIT_DRAIN
        if times == 5:
            (pool.folder / "go").touch()
        pool.start()
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert redis.xlen(dead_key("events", "workers")) == 0
    assert not redis.exists(isolated_key("events", "workers"), crashes_key("events", "workers"))


@pytest.mark.long
def test_an_end_at_the_drain_limit_is_no_crash(start_pool: StartPool, redis_server: Any) -> None:
    """A long job meets several restarts; being ended by them must not make it a dead letter."""
    pool = start_pool(
        RECORD
        + """
    import asyncio
    @handler("events", group="workers", timeout_s=600)
    async def handle(message: Message) -> None:
        record("call")
        await asyncio.sleep(600)
""",
        redis_url=redis_server.url,
        workers=1,
        config="[pool]\ndrain_s = 0.3\n",
    )
    redis = redis_server.sync()
    redis.xadd("events", {"n": "1"})
    for times in range(1, 5):
        eventually(lambda times=times: seen(pool)["call"] == times)
        done = pool.command("restart", "--wait")
        assert done.returncode == 0, done.stderr
    eventually(lambda: seen(pool)["call"] == 5)
    assert redis.xlen(dead_key("events", "workers")) == 0


@pytest.mark.parametrize(
    ("ending", "signal", "code", "told"),
    [
        ("import ctypes; ctypes.string_at(0)", b"SIGSEGV", None, "Segmentation fault"),
        ("os._exit(3)", b"", b"3", ""),
        pytest.param("import time; time.sleep(60)", b"SIGKILL", None, "in handle", marks=pytest.mark.long),
    ],
    ids=["segfault", "exit", "blocked loop"],
)
def test_a_letter_of_a_crash_tells_how_the_process_ended_and_where(
    start_pool: StartPool, redis_server: Any, ending: str, signal: bytes, code: bytes | None, told: str
) -> None:
    pool = start_pool(
        RECORD
        + f"""
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        record("call")
        {ending}
""",
        redis_url=redis_server.url,
        workers=1,
        config="[pool]\nbeat_limit_s = 1\n",
    )
    redis = redis_server.sync()
    redis.xadd("events", {"n": "1"})
    eventually(lambda: redis.xlen(dead_key("events", "workers")) == 1, 30)
    assert seen(pool)["call"] == 3
    ((_, letter),) = redis.xrange(dead_key("events", "workers"))
    assert letter[b"reason"] == b"crashed the worker"
    assert (letter[b"signal"], letter.get(b"exit_code")) == (signal, code)
    assert told in letter[b"stack"].decode() and bool(told) == bool(letter[b"stack"])
    shown = pool.command("dead", "show", "events", "workers", letter[b"id"].decode())
    assert letter[b"error"].decode() in shown.stdout and told in shown.stdout
    assert ("(hung)" in shown.stdout) == (ending.endswith("sleep(60)"))


def test_one_message_in_a_hundred_that_kills_costs_no_other_and_not_the_pool(
    start_pool: StartPool, redis_server: Any
) -> None:
    redis = redis_server.sync()
    pipe = redis.pipeline()
    for n in range(1000):
        pipe.xadd("events", {"n": n})
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        if int(message.fields["n"]) % 100 == 50:
            record("death")
            os._exit(3)
        record(message.fields["n"])
""",
        redis_url=redis_server.url,
        workers=4,
    )
    began_s = time.monotonic()
    pipe.execute()
    dead = dead_key("events", "workers")
    eventually(lambda: redis.xlen(dead) == 10, 60)
    eventually(lambda: redis.xinfo_groups("events")[0]["lag"] == 0, 60)
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0, 60)
    took_s = time.monotonic() - began_s
    counts = seen(pool)
    deaths = counts.pop("death")
    print(f"1,000 messages of which 10 kill: {took_s:.1f} s, {deaths} deaths, {counts.total() - 990} ran again")
    assert {int(letter[b"field:n"]) % 100 for _, letter in redis.xrange(dead)} == {50}
    assert len(counts) == 990
    assert 30 <= deaths <= 40
    assert counts.total() <= 990 + deaths * 100
    pool.wait_ready()


ENDINGS = {
    "cancels all tasks": "[task.cancel() for task in asyncio.all_tasks()]",
    "cancels all tasks and waits": "[task.cancel() for task in asyncio.all_tasks()]; await asyncio.sleep(60)",
    "cancels the others": "[task.cancel() for task in asyncio.all_tasks() - {asyncio.current_task()}]",
    "stops the loop and waits": "asyncio.get_running_loop().stop(); await asyncio.sleep(60)",
    "can't be cancelled": """asyncio.get_running_loop().stop()
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    pass""",
    "raises in a callback": "asyncio.get_running_loop().call_soon(sys.exit, 3); await asyncio.sleep(60)",
}


@pytest.mark.parametrize(
    "ending", [name if name == "cancels all tasks" else pytest.param(name, marks=pytest.mark.long) for name in ENDINGS]
)
def test_a_message_that_ends_the_workers_own_tasks_becomes_a_dead_letter(
    start_pool: StartPool, redis_server: Any, ending: str
) -> None:
    redis = redis_server.sync()
    pool = start_pool(
        RECORD
        + f"""
    import asyncio, sys
    @handler("events", group="workers", retry_base_s=0.1)
    async def handle(message: Message) -> None:
        if message.fields["n"] == "5":
            record("death")
            {ENDINGS[ending]}
        else:
            await asyncio.sleep(0.01)
            record(message.fields["n"])
""",
        redis_url=redis_server.url,
        workers=1,
        config="pool.beat_limit_s = 1",
    )
    pipe = redis.pipeline()
    for n in range(10):
        pipe.xadd("events", {"n": n})
    pipe.execute()
    dead = dead_key("events", "workers")
    eventually(lambda: redis.xlen(dead), 30)
    ((_, letter),) = redis.xrange(dead)
    assert (letter[b"field:n"], letter[b"reason"]) == (b"5", b"crashed the worker")
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    eventually(lambda: set(seen(pool)) == {"death", *(str(n) for n in range(10) if n != 5)})
    assert seen(pool)["death"] <= 4, "once among others, three times alone"
    if ending.startswith("cancels all"):
        assert pool.events("worker cancelled by a handler")


@pytest.mark.parametrize("code", [0, 78, 80])
def test_an_exit_code_that_a_handler_chose_means_a_crash(start_pool: StartPool, redis_server: Any, code: int) -> None:
    """78 would say that the worker can never start, 0 in a burst that all is done, 80 that it was recycled."""
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        record("call")
        if message.fields["n"] != "good":
            os._exit(int(message.fields["n"]))
""",
        redis_url=redis_server.url,
        workers=1,
        args=("--burst",),
        ready=False,
    )
    redis = redis_server.sync()
    for n in (code, "good"):
        redis.xadd("events", {"n": n})
    assert pool.wait() == 0
    assert redis.xlen(dead_key("events", "workers")) == 1
    assert redis.xinfo_groups("events")[0]["lag"] == 0
    assert redis.xpending("events", "workers")["pending"] == 0
