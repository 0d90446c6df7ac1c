"""What a worker lacks is not the message's fault: nothing is charged, nothing runs twice, less runs at a time."""

import asyncio
import collections
import errno
import os
import threading
from typing import Any

import pytest

from supervisor import Message, handler
from supervisor.core.lacks import CALM_S, NO_PROCESS, Lack, LackState, lack_of
from supervisor.keys import dead_key
from supervisor.shared_state import SlotField
from tests.redis.worker import GROUP, STREAM, pending, working
from tests.support.waiting import eventually_async


@pytest.mark.parametrize("already", [0, 2])
async def test_without_threads_messages_wait_and_run_once(
    redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch, already: int
) -> None:
    seen: collections.Counter[str] = collections.Counter()
    begin, refused = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("handler") and int(thread.name.rpartition("_")[2]) >= already and lacking:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        begin(thread)

    lacking = True
    monkeypatch.setattr(threading.Thread, "start", start)

    @handler(STREAM, group=GROUP, max_deliveries=1)
    def handle(message: Message) -> None:
        seen[message.id] += 1

    for _ in range(20):
        await redis.xadd(STREAM, {"n": "1"})
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: refused)
        if not already:
            assert worker.shared.get(SlotField.LACK) == Lack.THREADS and not seen
            lacking = False
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 20)
        assert worker.shared.get(SlotField.FAILED) == worker.shared.get(SlotField.DEAD) == 0
    assert set(seen.values()) == {1} and len(seen) == 20
    assert await pending(redis) == 0


LACKS = {
    "descriptors": OSError(errno.EMFILE, "Too many open files"),
    "threads": RuntimeError("can't start new thread"),
    "memory": MemoryError(),
    "process": OSError(errno.EAGAIN, "Resource temporarily unavailable", NO_PROCESS),
}


@pytest.mark.parametrize("error", LACKS.values(), ids=LACKS)
async def test_a_handler_that_meets_a_lack_is_not_charged(redis: Any, redis_url: str, error: Exception) -> None:
    attempts: list[int] = []

    @handler(STREAM, group=GROUP, max_deliveries=1, retry_base_s=0.01)
    async def handle(message: Message) -> None:
        attempts.append(message.deliveries)
        if len(attempts) <= 3:
            raise ConnectionError("wrapped by a library") from error

    await redis.xadd(STREAM, {"n": "1"})
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.LACK))
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 1)
    assert attempts == [1, 1, 1, 1]
    assert await redis.xlen(dead_key(STREAM, GROUP)) == 0


async def test_a_message_that_needs_more_than_there_is_becomes_a_dead_letter(redis: Any, redis_url: str) -> None:
    @handler(STREAM, group=GROUP, max_deliveries=1, retry_base_s=0.001, retry_max_s=0.01)
    async def handle(message: Message) -> None:
        raise MemoryError

    await redis.xadd(STREAM, {"n": "1"})
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1)
        await asyncio.sleep(0)
    assert await pending(redis) == 0


def test_a_process_that_can_not_be_started_is_a_lack_and_a_busy_socket_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    def start() -> None:
        # As C code raises it: in the frame of the caller.
        try:
            os.fork()
        except BlockingIOError as error:
            raise error.with_traceback(None) from None

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(BlockingIOError) as caught:
        start()
    assert lack_of(caught.value) is Lack.PROCESSES
    with pytest.raises(BlockingIOError) as caught:
        refuse()
    assert lack_of(caught.value) is Lack.NONE


def test_other_errors_are_no_lack() -> None:
    for error in (OSError(errno.ENOENT, "no"), RuntimeError("x"), ValueError(), ConnectionResetError(104, "x")):
        assert lack_of(error) is Lack.NONE


def test_less_runs_while_something_lacks() -> None:
    state = LackState()
    assert state.note(Lack.THREADS, 10.0) and state.reduced(100) == 50
    assert not state.note(Lack.THREADS, 10.5) and state.reduced(100) == 50
    assert not state.note(Lack.THREADS, 11.5) and state.reduced(100) == 25
    assert not state.look(11.5 + CALM_S - 1)
    assert state.look(11.5 + CALM_S) and state.reduced(100) == 100
