"""What the HTTP service says of Redis while it has too little CPU time to find out."""

import asyncio
import contextlib
import time

from api.snapshots import TOO_BUSY, LoopWatch, PartHealth, Snapshot, judge

OK, SILENT = PartHealth("", 100.0), PartHealth("no answer in time", 101.0)


def test_silence_is_a_failure_where_there_was_time_to_hear_an_answer() -> None:
    assert judge(OK, SILENT, timed_out=True, starved=False, pressed=False) == SILENT


def test_want_of_cpu_time_keeps_what_was_known() -> None:
    for starved, pressed in ((True, False), (False, True), (True, True)):
        held = judge(OK, SILENT, timed_out=True, starved=starved, pressed=pressed)
        assert (held.error, held.at_s, held.busy) == ("", OK.at_s, True)


def test_without_earlier_knowledge_it_is_too_busy_to_tell() -> None:
    assert judge(None, SILENT, timed_out=True, starved=True, pressed=False).error == TOO_BUSY


def test_an_answer_counts_however_busy_the_machine_is() -> None:
    refused = PartHealth("OOM: full", 102.0)
    assert judge(OK, refused, timed_out=False, starved=True, pressed=True) == refused


def test_a_busy_machine_is_no_excuse_for_ever() -> None:
    late = PartHealth("no answer in time", OK.at_s + 60)
    assert judge(OK, late, timed_out=True, starved=False, pressed=True) == late
    assert judge(OK, late, timed_out=True, starved=True, pressed=True).error == ""


async def test_a_loop_that_does_not_turn_is_noticed() -> None:
    with LoopWatch() as watch:
        time.sleep(0.2)
        await asyncio.sleep(0)
    assert watch.starved


async def test_a_request_does_not_wait_for_a_refresh_that_hangs() -> None:
    hang = asyncio.Event()

    async def fetch(before: int | None) -> int:
        if before is not None:
            await hang.wait()
        return (before or 0) + 1

    snapshot = Snapshot(fetch, every_s=0.001)
    assert await snapshot.get(5) == 1
    await asyncio.sleep(0.01)
    assert await asyncio.wait_for(snapshot.get(60), 30) == 1
    hang.set()
    while await snapshot.get(5) == 1:
        await asyncio.sleep(0)
    await snapshot.close()


async def test_nothing_known_in_time_is_none() -> None:
    async def fetch(_: int | None) -> int:
        await asyncio.sleep(60)
        return 1

    snapshot = Snapshot(fetch, every_s=1)
    assert await snapshot.get(0.01) is None
    await snapshot.close()


async def test_a_closed_one_has_let_go_of_what_it_used() -> None:
    """Else the clients are closed while one of their connections is being made, which stays open."""
    used: list[str] = []

    async def fetch(_: int | None) -> int:
        used.append("taken")
        try:
            await asyncio.Event().wait()
        finally:
            used.append("released")
        return 1

    snapshot = Snapshot(fetch, every_s=1)
    snapshot.start()
    await asyncio.sleep(0)
    await snapshot.close()
    assert used == ["taken", "released"]


async def test_closing_ends_a_fetch_that_drops_a_cancellation() -> None:
    """As `asyncio.wait_for` may before Python 3.12."""

    async def fetch(_: int | None) -> int:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return 1

    snapshot = Snapshot(fetch, every_s=1)
    snapshot.start()
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await snapshot.close()


async def test_a_closed_one_is_not_started_by_a_late_request() -> None:
    fetched = 0

    async def fetch(_: int | None) -> int:
        nonlocal fetched
        fetched += 1
        return 1

    snapshot = Snapshot(fetch, every_s=0)
    assert await snapshot.get(30) == 1
    await snapshot.close()
    fetched = 0
    assert await snapshot.get(30) == snapshot.peek() == 1
    await asyncio.sleep(0)
    assert fetched == 0
