"""`TestPool` runs handlers on a real server with real claims, and its clock can be moved."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from supervisor import BatchError, Message, Next, context, handler, worker_lifespan
from supervisor.broker.connect import client
from supervisor.testing import NotSettledError, TestPool, assert_nothing_lost
from supervisor.testing.embedded_server import EmbeddedServer

calls: list[tuple[str, int]] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


@handler("mail", group="send", max_deliveries=3)
async def send(message: Message) -> None:
    calls.append((message.fields["to"], message.deliveries))
    if message.fields["to"] == "nobody" or (message.fields["to"] == "busy" and message.deliveries == 1):
        raise ConnectionError(message.fields["to"])


async def test_retries_wait_for_the_clock() -> None:
    async with TestPool(send) as pool:
        await pool.publish("mail", {"to": "busy"})
        await pool.settled()
        assert [message.fields["to"] for message in pool.retries] == ["busy"]
        await pool.advance(2)
        assert calls == [("busy", 1), ("busy", 2)]
        assert [message.fields["to"] for message in pool.done] == ["busy"]


async def test_dead_letters_and_replay() -> None:
    async with TestPool(send) as pool:
        await pool.publish("mail", {"to": "nobody"})
        for _ in range(3):
            await pool.settled()
            pool.advance(600)
        await pool.settled()
        (letter,) = await pool.dead_letters()
        assert letter.fields == {"to": "nobody"}
        assert letter.reason == "failed 3 times, the last time with ConnectionError: nobody"
        await pool.replay()
        assert len(calls) == 4
        await assert_nothing_lost(pool)


@handler("orders", group="book")
async def book(messages: list[Message]) -> None:
    raise BatchError({message.id: ValueError() for message in messages if message.fields["n"] == "7"})


@handler("orders", group="forward")
def forward(message: Message) -> None:
    calls.append((message.fields["n"], 0))


async def test_a_batch_with_one_failure() -> None:
    async with TestPool(book, forward) as pool:
        for number in range(20):
            await pool.publish("orders", {"n": number})
        await pool.settled()
        assert [message.fields["n"] for message in pool.retries] == ["7"]
        assert len(pool.done) == 39
        await assert_nothing_lost(pool)


@handler("first", group="g")
async def chain(message: Message) -> None:
    await asyncio.sleep(0)
    await context().publisher.publish("second", {"n": message.fields["n"]})


@handler("second", group="g")
async def end_of_chain(message: Message) -> None:
    await asyncio.sleep(0.001)
    calls.append((message.fields["n"], 0))


async def test_settled_waits_for_what_handlers_publish() -> None:
    async with TestPool([chain, end_of_chain]) as pool:
        for number in range(50):
            await pool.publish("first", {"n": number})
            if number % 10 == 0:
                await pool.settled()
                assert len(calls) == number + 1
        await pool.settled()
        assert len(calls) == 50


async def swallow(message: Message, call_next: Next) -> None:
    """Acks what fails, which is how messages get lost."""
    try:
        await call_next(message)
    except ConnectionError:
        await context().redis.xack(message.stream, message.group, message.id)
        raise


@handler("mail", group="lossy", middleware=[swallow])
async def lossy(message: Message) -> None:
    raise ConnectionError


async def test_a_lost_message_is_named() -> None:
    async with TestPool(lossy) as pool:
        published = await pool.publish("mail", {"to": "x"})
        async with asyncio.timeout(30):
            while not pool.retries:
                await asyncio.sleep(0.001)
        with pytest.raises(AssertionError, match=f"1 messages were acked .*\n  {published.id} of mail in lossy"):
            await assert_nothing_lost(pool)


async def test_a_handler_that_does_not_end_is_named() -> None:
    gate = asyncio.Event()

    @handler("slow", group="g")
    async def waits(message: Message) -> None:
        await gate.wait()

    async with TestPool(waits) as pool:
        published = await pool.publish("slow", {"n": 1})
        with pytest.raises(NotSettledError, match=rf"{published.id} of slow in g \(attempt 1\)"):
            await pool.settled(timeout_s=0.2)
        gate.set()


lived: list[str] = []


@worker_lifespan
async def resources() -> AsyncIterator[dict[str, object]]:
    lived.append("entered")
    yield {"who": "lifespan"}
    lived.append("left")


@handler("state", group="g")
async def stateful(message: Message) -> None:
    calls.append((context().state["who"], len(context().state_dir.parts) > 1))


async def test_lifespans_run_unless_the_test_gives_the_state() -> None:
    lived.clear()
    async with TestPool(stateful) as pool:
        await pool.publish("state", {"n": 1})
        await pool.settled()
    async with TestPool(stateful, state={"who": "test"}) as pool:
        await pool.publish("state", {"n": 1})
        await pool.settled()
    assert calls == [("lifespan", True), ("test", True)]
    assert lived == ["entered", "left"]


async def test_it_starts_quickly_after_its_first_use() -> None:
    async with TestPool(send):
        pass
    began_s, busy_s = time.perf_counter(), time.process_time()
    async with TestPool(send) as pool:
        await pool.publish("mail", {"to": "ada"})
        await pool.settled()
    # Another process may have the processor: CPU time is what a busy machine does not change.
    assert time.process_time() - busy_s < 0.3, time.perf_counter() - began_s


async def test_pools_do_not_see_each_other() -> None:
    async with TestPool(send) as one, TestPool(send) as other:
        await one.publish("mail", {"to": "ada"})
        await one.settled()
        await other.settled()
        assert (len(one.done), len(other.done)) == (1, 0)
        assert await other.redis.dbsize() > 0


async def test_the_options_of_a_config_count(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[stream."mail"]\nmax_deliveries = 1\n[app]\nsender = "x"\n')
    async with TestPool(send, config=config) as pool:
        await pool.publish("mail", {"to": "nobody"})
        await pool.settled()
        assert len(await pool.dead_letters()) == 1


PLUGIN_TEST = """
from supervisor import Message, handler

@handler("s", group="g", max_deliveries=5)
async def fails(message: Message) -> None:
    raise ValueError

async def test_options(supervisor_pool, supervisor_deliver, supervisor_redis_url):
    assert supervisor_redis_url.startswith("unix:")
    assert "once" in (await supervisor_deliver(fails, {"n": "1"})).reason
    async with supervisor_pool(fails) as pool:
        await pool.publish("s", {"n": 1})
        await pool.settled()
        assert len(await pool.dead_letters()) == 1
"""


def test_the_plugin_knows_the_projects_config(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "config.toml").write_text('[retry]\nmax_deliveries = 5\n[stream."s"]\nmax_deliveries = 1\n')
    (tmp_path / "test_it.py").write_text(PLUGIN_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    words = ["-p", "no:cacheprovider", "-p", "no:valkey", "-q"]
    plugin: list[Any] = [] if "redis-streams-supervisor" in _plugins() else ["-p", "supervisor.testing.plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *plugin], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def _plugins() -> set[str]:
    from importlib.metadata import entry_points

    return {point.dist.name for point in entry_points(group="pytest11") if point.dist}


async def test_the_server_of_tests_may_be_in_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TMPDIR may be too long for the path of a socket."""
    folder = tmp_path / (" 100%25 #?&'" + "x" * 120)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    server = EmbeddedServer()
    try:
        redis = client(server.url(1))
        assert await redis.ping()
        await redis.aclose()
    finally:
        server.close()
