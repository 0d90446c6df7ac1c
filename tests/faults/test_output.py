"""Handlers that print to outputs that are full or closed: no message fails or waits, and no worker dies."""

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_log_faults import DROPPED, LogPipe
from tests.support.faults import Watch
from tests.support.pool import MARK, PROGRAM, Pool
from tests.support.recording import RECORD, seen
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
HANDLERS = RECORD + (
    """
    import logging, subprocess, sys
    KEPT = sys.stdout
    logging.getLogger("imported").warning("at import")
    print("at import \u2192 \u20ac")

    def shout(text: str) -> None:
        print(text, "\u2192 \\udcff")
        print(text, file=sys.stderr)
        KEPT.write(text + "\\n")
        sys.__stdout__.write(text + "\\n")
        sys.stdout.buffer.write(text.encode() + b"\\n")
        sys.stdout.flush()
        os.write(1, text.encode() + b"\\n")
        os.write(2, text.encode() + b"\\n")
        subprocess.run(["sh", "-c", 'echo "$0"; echo "$0" >&2', text[:1000]], check=True)
        logging.getLogger("shop").warning("%s", text)

    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        shout("x" * 20_000)
        record("done")

    @handler("plain", group="workers")
    def plain(message: Message) -> None:
        shout("y" * 20_000)
        record("done")
"""
)


@pytest.fixture
def pipes(project: Path) -> Iterator[list[LogPipe]]:
    """The pool's stdout and stderr, which are read when a test does it."""
    made = [LogPipe(project / "out"), LogPipe(project / "err")]
    yield made
    for pipe in made:
        pipe.close()


def redirected(words: str) -> tuple[str, ...]:
    """Return a command that starts the pool with other standard streams."""
    return ("sh", "-c", f'exec "$@" {words}', "sh", *PROGRAM)


def check_handled(pool: Pool, redis: Any) -> None:
    """Publish more than a pipe holds, and check that each message is handled once, by workers that live."""
    before = pool.pids()
    for n in range(20):
        redis.xadd("events", {"n": n})
        redis.xadd("plain", {"n": n})
    eventually(lambda: seen(pool)["done"] == 40, 30, 0.1)
    assert pool.pids() == before
    assert [worker["failed"] for worker in pool.ask("status")["workers"]] == [0, 0]


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("words", "env"),
    [
        ("1>&- 2>&-", {"PYTHONIOENCODING": "ascii:strict"}),
        ("0<&- 1>&- 2>&-", C_LOCALE),
        ("1>/dev/full 2>/dev/full", C_LOCALE),
    ],
)
def test_streams_that_take_nothing(start_pool: StartPool, redis_server: Any, words: str, env: dict[str, str]) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, program=redirected(words), env=env)
    check_handled(pool, redis_server.sync())


def test_pipes_that_nobody_reads(pipes: list[LogPipe], start_pool: StartPool, watch: Watch, redis_server: Any) -> None:
    pool = start_pool(HANDLERS, ready=False, redis_url=redis_server.url, config="[pool]\nbeat_limit_s = 2\n")
    for pipe in pipes:
        pipe.hide()
    pool.wait_ready()
    watch.measure(pool)
    check_handled(pool, redis_server.sync())
    for pipe in pipes:
        eventually(lambda pipe=pipe: pipe.read() and pool.ask("ping") == {} and DROPPED in pipe.text)
    for pipe in pipes:
        pipe.close()
    check_handled_again(pool, redis_server.sync())


@pytest.mark.parametrize(
    "kind", ["terminal", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("socket", "closed terminal"))]
)
def test_other_readers_that_do_not_read(tmp_path: Path, redis_server: Any, kind: str) -> None:
    """A socket is what systemd gives a service; a terminal may be stopped (Ctrl-S) or gone."""
    with contextlib.ExitStack() as stack:
        pool = Pool(tmp_path / "project", HANDLERS, redis_url=redis_server.url)
        ends = [end.detach() for end in socket.socketpair()] if kind == "socket" else list(os.openpty())
        stack.callback(lambda: [os.close(fd) for fd in ends])
        for name in ("out", "err"):
            (pool.folder / name).touch()
        pool.process = subprocess.Popen(
            [*PROGRAM, *pool._words], cwd=pool.folder, env=pool._env | {MARK: pool._mark},
            stdin=subprocess.DEVNULL, stdout=ends[1], stderr=ends[1], start_new_session=True,
        )  # fmt: skip
        stack.enter_context(pool)
        pool.wait_ready()
        while kind == "closed terminal" and ends:
            os.close(ends.pop())
        check_handled(pool, redis_server.sync())


def check_handled_again(pool: Pool, redis: Any) -> None:
    before = seen(pool)["done"]
    redis.xadd("events", {"n": 0})
    eventually(lambda: seen(pool)["done"] == before + 1)


def lines_of(pool: Pool, name: str) -> list[dict[str, Any]]:
    text = (pool.folder / name).read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_lines_arrive_whole_with_the_name_of_their_worker(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(
        RECORD
        + """
    import logging, subprocess, sys
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        n = message.fields["n"]
        sys.stdout.reconfigure(encoding="ascii")  # as libraries do it
        sys.stdout.buffer.close()
        with sys.stdout:
            pass
        print("printed", n, "\u20ac", end="")
        print(" to the end" + "." * 200)
        subprocess.run(["sh", "-c", f"printf 'from '; echo sh {n} >&2; echo sh {n}"], check=True)
        os.write(1, b"\\xff not UTF-8\\n")
        print('{"own": "JSON"}')
        record("done")
""",
        redis_url=redis_server.url,
        workers=4,
    )
    redis = redis_server.sync()
    for n in range(200):
        redis.xadd("events", {"n": n})
    eventually(lambda: seen(pool)["done"] >= 100, 30, 0.1)
    pids = set(pool.pids().values())
    assert pool.command("restart", "--wait").returncode == 0  # the arbiter execs itself and reads on
    eventually(lambda: seen(pool)["done"] == 200, 30, 0.1)
    pids |= set(pool.pids().values())
    assert pool.stop() == 0
    out = lines_of(pool, "out")
    assert len(out) == 4 * 200
    for line in out:
        assert line["pid"] in pids and line["worker"].endswith(f":{line['slot']}")
    texts = sorted(line["text"] for line in out if "text" in line)
    expected = [[f"printed {n} \u20ac to the end" + "." * 200, f"from sh {n}", "\\xff not UTF-8"] for n in range(200)]
    assert texts == sorted(text for three in expected for text in three)
    assert sum(line.get("own") == "JSON" for line in out) == 200
    err = [line["text"] for line in lines_of(pool, "err") if line["event"] == "output"]
    assert sorted(err) == sorted(f"sh {n}" for n in range(200))


def test_one_pipe_for_both_keeps_the_order_and_counts_as_stderr(start_pool: StartPool, redis_server: Any) -> None:
    handlers = """
    import sys
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        for n in range(3):
            print(n, "out")
            print(n, "err", file=sys.stderr)
        record("done")
"""
    pool = start_pool(RECORD + handlers, redis_url=redis_server.url, program=redirected("2>&1"))
    redis_server.sync().xadd("events", {"n": 1})
    eventually(lambda: seen(pool)["done"] == 1)
    assert pool.stop() == 0
    lines = [line for line in lines_of(pool, "out") if line["event"] == "output"]
    assert [line["text"] for line in lines] == ["0 out", "0 err", "1 out", "1 err", "2 out", "2 err"]
    assert {line["to"] for line in lines} == {"stderr"}


LOGS = RECORD + (
    """
    import asyncio, logging
    log = logging.getLogger("shop.orders")

    @handler("events", group="workers", retry_base_s=0.05)
    async def handle(message: Message) -> None:
        log.info("order %s", message.fields["n"])
        log.debug("hidden")
        async with asyncio.TaskGroup() as group:
            group.create_task(part())
        await asyncio.to_thread(log.error, "in a thread")
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("failed")
        log.log(25, "a level of its own")
        record("done")
        if message.deliveries == 1:
            raise RuntimeError

    async def part() -> None:
        log.warning("in a task")

    @handler("plain", group="threads")
    def plain(message: Message) -> None:
        log.info("plain")

    @handler("batch", group="batches")
    async def batch(messages: list[Message]) -> None:
        log.info("batch")
"""
)


def test_logging_goes_to_the_log_of_the_pool(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(LOGS, redis_url=redis_server.url, workers=2)
    redis = redis_server.sync()
    entry = redis.xadd("events", {"n": 7}).decode()
    eventually(lambda: seen(pool)["done"] == 2)
    lines = pool.events("order 7")
    assert [(line["level"], line["logger"], line["id"], line["attempt"]) for line in lines] == [
        ("info", "shop.orders", entry, 1),
        ("info", "shop.orders", entry, 2),
    ]
    for line in lines:
        assert (line["stream"], line["group"]) == ("events", "workers")
        assert line["worker"].endswith(f":{line['slot']}") and line["pid"] == pool.pids()[line["slot"]]
    for event, level in (("in a task", "warning"), ("in a thread", "error"), ("a level of its own", "info")):
        assert {(line["level"], line["id"]) for line in pool.events(event)} == {(level, entry)}
    assert "ZeroDivisionError" in pool.events("failed")[0]["exception"]
    assert not pool.events("hidden")
    plain = redis.xadd("plain", {"n": 1}).decode()
    assert eventually(lambda: pool.events("plain"))[0]["id"] == plain
    redis.xadd("batch", {"n": 1})
    assert eventually(lambda: pool.events("batch"))[0]["group"] == "batches"


@pytest.mark.parametrize(
    "configured", ["logging.basicConfig(format='MINE %(message)s')", "log.addHandler(logging.StreamHandler())"]
)
def test_logging_that_the_project_configures_is_left_alone(
    start_pool: StartPool, redis_server: Any, configured: str
) -> None:
    text = LOGS.replace(
        'log = logging.getLogger("shop.orders")', f'log = logging.getLogger("shop.orders")\n    {configured}'
    )
    pool = start_pool(text, redis_url=redis_server.url, workers=1)
    redis_server.sync().xadd("events", {"n": 7})
    eventually(lambda: seen(pool)["done"] == 2)
    word = "MINE in a task" if "basicConfig" in configured else "in a task"

    def printed() -> list[str]:
        return [line["text"] for line in pool.events("output")]

    eventually(lambda: printed().count(word) >= 2, what="the arbiter has written both attempts")
    assert not pool.events("in a task")
    assert not any("order 7" in text for text in printed()), "the level stays Python's"
