"""Replays with a worker: run by their own group alone, at once, under the id that they had, and never lost."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import BatchError, Message, handler
from supervisor.broker import inspect
from supervisor.broker.replay import Outcome, replay
from supervisor.core.replayed_copy import ORIGIN, original
from supervisor.errors import HandlerError
from supervisor.handling.loader import specs_of
from supervisor.keeper.keeper import Keeper
from supervisor.keys import REPLAY_CONSUMER, isolated_key
from supervisor.settings.model import Settings
from supervisor.shared_state import HANDLERS_MAX, HeaderField, SharedState, SlotField
from supervisor.worker.source import sources_of
from tests.redis.replays import COPIES, DEAD, GROUP, QUICK, STREAM, nothing_left, replay_all, trimmed
from tests.redis.worker import Worker, working
from tests.support.letters import add_dead_letter, letters
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.usefixtures("every_server")


async def test_a_worker_that_starts_runs_them_as_their_messages(redis: Any, sync: Any, every_server: Any) -> None:
    odd = {"n": "0", b"\xff\x00": b"\xfe", "": "empty", "id": "mine", "supervisor:origin": "5-5"}
    _, entry = add_dead_letter(sync, STREAM, GROUP, odd, trimmed=True)
    sync.xgroup_create(STREAM, "other", "0")
    got: list[Message] = []

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        got.append(message)

    @handler(STREAM, group="other")
    async def other(message: Message) -> None:
        raise AssertionError("it is not this group's")

    assert await replay_all(redis) == ["replayed"]
    assert sync.xlen(DEAD) == 0
    [info] = await inspect.groups(redis, [(STREAM, GROUP)])
    assert (info.pending, info.replaying, info.dead, info.lag) == (1, 1, 0, 0)
    [shown] = await inspect.pending(redis, STREAM, GROUP)
    assert (shown.id, shown.consumer, shown.attempts) == (entry, REPLAY_CONSUMER, 0)
    worker = Worker(every_server.url, [handle, other], SharedState(), **QUICK)
    await eventually_async(lambda: nothing_left(redis))
    [message] = got
    assert (message.id, message.stream, message.group, message.deliveries) == (entry, STREAM, GROUP, 1)
    wanted = [part if isinstance(part, bytes) else part.encode() for pair in odd.items() for part in pair]
    assert list(message.flat) == wanted
    assert worker.shared.get(SlotField.DONE) == 1
    await worker.stop()
    assert worker.faults == []


@pytest.mark.parametrize("still_stored", [False, True])
async def test_a_worker_that_waits_runs_them_at_once(
    redis: Any, sync: Any, every_server: Any, still_stored: bool
) -> None:
    ids = [add_dead_letter(sync, STREAM, GROUP, {"n": n}, trimmed=not still_stored)[1] for n in range(250)]
    got: list[str] = []

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        got.append(message.id)

    # Nothing asks it to look, and its read would wait for longer than the test does.
    async with working(every_server.url, handle, consumer={"block_ms": 60_000}) as worker:
        await worker.ready.wait()
        await eventually_async(lambda: worker.runtime.consumers[0]._reader.outstanding)
        assert await replay_all(redis) == ["replayed"] * 250
        await eventually_async(lambda: nothing_left(redis))
    assert got == ids and sync.xlen(STREAM) == (250 if still_stored else 0)
    assert sync.xpending(STREAM, GROUP)["pending"] == 0


async def test_a_message_of_very_many_fields_comes_back_whole(redis: Any, sync: Any, every_server: Any) -> None:
    fields = {f"n{n}": str(n) for n in range(5_000)} | {b"\xff": b"\xfe\x00"}
    _, entry = add_dead_letter(sync, STREAM, GROUP, fields, trimmed=True)
    got: list[Message] = []

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        got.append(message)

    assert await replay_all(redis) == ["replayed"]
    worker = Worker(every_server.url, [handle], SharedState(), **QUICK)
    await eventually_async(lambda: nothing_left(redis))
    wanted = [part if isinstance(part, bytes) else part.encode() for pair in fields.items() for part in pair]
    assert got[0].id == entry and list(got[0].flat) == wanted
    await worker.stop()


async def test_one_that_fails_again_is_retried_and_then_one_letter_of_its_message(
    redis: Any, sync: Any, every_server: Any
) -> None:
    _, entry = add_dead_letter(sync, STREAM, GROUP, {"n": "1"}, trimmed=True)
    attempts: list[int] = []

    @handler(STREAM, group=GROUP, max_deliveries=3, retry_base_s=0.01, retry_max_s=0.02)
    async def handle(message: Message) -> None:
        attempts.append(message.deliveries)
        raise ValueError("again")

    assert await replay_all(redis) == ["replayed"]
    worker = Worker(every_server.url, [handle], SharedState(), **QUICK)
    for times in (1, 2):
        await eventually_async(lambda: sync.xlen(DEAD) == 1)
        await eventually_async(lambda: nothing_left(redis))
        [letter] = await letters(redis, STREAM, GROUP)
        assert (letter.id, letter.stream, letter.fields, letter.deliveries) == (entry, STREAM, {"n": "1"}, 3)
        assert attempts == [1, 2, 3] * times
        if times == 1:
            assert await replay_all(redis) == ["replayed"]
            worker.runtime.rescan()
            await eventually_async(lambda: len(attempts) == 6)
    await worker.stop()
    assert sync.xlen(DEAD) == 1


async def test_a_suspect_copy_is_charged_and_at_last_given_up(redis: Any, sync: Any, every_server: Any) -> None:
    _, entry = add_dead_letter(sync, STREAM, GROUP, {"n": "1"}, trimmed=True)
    assert await replay_all(redis) == ["replayed"]
    shared, calls, url = SharedState(), 0, every_server.url

    @handler(STREAM, group=GROUP)
    async def kill(message: Message) -> None:
        nonlocal calls
        calls += 1
        await asyncio.Event().wait()

    for times in (1, 2, 3):
        worker = Worker(url, [kill], shared, **QUICK)
        await eventually_async(lambda times=times: calls == times)  # type: ignore[misc]
        row: Any = shared.slot(0).consumer(COPIES, GROUP)
        alone = row.isolated() or (0, 0)
        await worker.vanish()
        row.set_isolated(*alone)  # as a killed process leaves it
        shared.slot(0).set(SlotField.INCARNATION, 2)
    last = Worker(url, [kill], shared, **QUICK)
    await eventually_async(lambda: sync.xlen(DEAD) == 1)
    await eventually_async(lambda: nothing_left(redis))
    [letter] = await letters(redis, STREAM, GROUP)
    assert (letter.id, letter.reason, letter.deliveries, calls) == (entry, "crashed the worker", 3, 3)
    await last.stop()


async def test_of_a_batch_of_both_only_what_failed_is_kept(redis: Any, sync: Any, every_server: Any) -> None:
    [bad, good] = trimmed(sync, 2)
    seen: list[str] = []

    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def handle(messages: list[Message]) -> None:
        seen.extend(message.id for message in messages)
        failed = {message.id: ValueError("bad") for message in messages if message.id == bad}
        if failed:
            raise BatchError(failed)

    assert await replay_all(redis) == ["replayed"] * 2
    own = sync.xadd(STREAM, {"n": "own"}).decode()
    worker = Worker(every_server.url, [handle], SharedState(), **QUICK)
    await eventually_async(lambda: nothing_left(redis))
    await eventually_async(lambda: sorted(seen) == sorted([bad, good, own]))
    assert [letter.id for letter in await letters(redis, STREAM, GROUP)] == [bad]
    await worker.stop()
    assert sync.xpending(STREAM, GROUP)["pending"] == 0


async def test_a_batch_may_hold_a_copy_and_a_message_whose_entries_have_the_same_id(
    redis: Any, sync: Any, every_server: Any
) -> None:
    seen: list[list[str]] = []
    go_on = asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def handle(messages: list[Message]) -> None:
        seen.append(sorted(message.fields["n"] for message in messages))
        await go_on.wait()

    same = "9999999999999-0"
    sync.xadd(STREAM, {"n": "first"})
    async with working(every_server.url, handle, **QUICK) as worker:
        await eventually_async(lambda: seen == [["first"]])
        # So that one read brings both: a blocked one would be answered with the first.
        worker.runtime.pause(True)
        await eventually_async(lambda: not worker.runtime.consumers[0]._reader.outstanding)
        sync.xadd(STREAM, {"n": "own"}, id=same)
        sync.xadd(COPIES, {ORIGIN: "1-1", "n": "copy"}, id=same)
        worker.runtime.pause(False)
        await eventually_async(lambda: worker.runtime.consumers[0].executor.in_hand == 3)
        go_on.set()
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 3)
        await eventually_async(lambda: nothing_left(redis))
    assert seen == [["first"], ["copy", "own"]] and sync.xpending(STREAM, GROUP)["pending"] == 0


async def test_a_pool_that_is_stopped_leaves_no_mark_of_a_copy(redis: Any, sync: Any, every_server: Any) -> None:
    """What ran alone at the drain's deadline has ended nothing, and is not to be charged for it."""

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None: ...

    settings = Settings(redis={"url": every_server.url}, pool={"host": "host"})  # type: ignore[arg-type]
    shared = SharedState()
    shared.set(HeaderField.WORKERS, 2)
    marks = [isolated_key(STREAM, GROUP), isolated_key(COPIES, GROUP)]
    for key in marks:
        sync.hset(key, mapping={"host:0": "1-1", "host:1": "2-2", "other:0": "3-3"})
    keeper = Keeper(settings, specs_of(settings, [handle]), shared, "token")
    await keeper.clear_isolation_markers()
    await keeper.close()
    assert [sync.hkeys(key) for key in marks] == [[b"other:0"]] * 2


async def test_concurrency_is_one_limit_for_both_and_a_busy_stream_keeps_no_copy_out(
    redis: Any, sync: Any, every_server: Any
) -> None:
    ids = trimmed(sync, 20)
    running, most, done, stop = 0, 0, [], asyncio.Event()

    @handler(STREAM, group=GROUP, concurrency=1)
    async def handle(message: Message) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        done.append(message.id)

    async def busy() -> None:
        while not stop.is_set():
            if await redis.xlen(STREAM) - len(done) < 500:
                for n in range(100):
                    await redis.xadd(STREAM, {"n": n})
            await asyncio.sleep(0.005)

    assert await replay_all(redis) == ["replayed"] * 20
    publisher = asyncio.create_task(busy())
    worker = Worker(every_server.url, [handle], SharedState(), **QUICK)
    await eventually_async(lambda: set(ids) <= set(done))
    stop.set()
    await publisher
    await eventually_async(lambda: nothing_left(redis))
    await worker.stop()
    assert most == 1 and len(done) == len(set(done)) and len(done) > 20


async def test_a_stream_that_is_deleted_under_a_worker_ends_only_its_reading(
    redis: Any, sync: Any, every_server: Any
) -> None:
    trimmed(sync, 2)
    got: list[str] = []

    @handler(STREAM, group=GROUP, retry_base_s=3600, retry_max_s=3600)
    async def handle(message: Message) -> None:
        got.append(message.id)
        if message.fields["n"] == "0":
            raise ValueError("later")

    assert await replay_all(redis) == ["replayed"] * 2
    worker = Worker(every_server.url, [handle], SharedState(), **QUICK)
    await eventually_async(lambda: len(got) == 2)
    sync.delete(COPIES)
    sync.xadd(STREAM, {"n": "own"})
    await eventually_async(lambda: len(got) == 3)
    # And there may be one again, also one whose group is gone.
    worker.runtime.pause(True)
    await eventually_async(lambda: not worker.runtime.consumers[0]._reader.outstanding)
    [again] = trimmed(sync, 1, more="again")
    assert await replay_all(redis) == ["replayed"]
    sync.xgroup_destroy(COPIES, GROUP)
    worker.runtime.pause(False)
    await eventually_async(lambda: again in got)
    await worker.stop()


async def test_a_pause_starts_neither_retries_nor_replays(redis: Any, sync: Any, every_server: Any) -> None:
    got: list[str] = []

    @handler(STREAM, group=GROUP, retry_base_s=0.05, retry_max_s=0.1)
    async def handle(message: Message) -> None:
        got.append(f"{message.fields['n']} {message.deliveries}")
        if got == ["own 1"]:
            worker.runtime.pause(True)
            raise ValueError("later")

    sync.xadd(STREAM, {"n": "own"})
    async with working(every_server.url, handle, **QUICK) as worker:
        await eventually_async(lambda: got == ["own 1"])
        trimmed(sync, 1)
        assert await replay_all(redis) == ["replayed"]
        await asyncio.wait_for(worker.runtime.consumers[0].retries.wait_due(), 30)
        await asyncio.sleep(0.2)  # time in which something might start
        assert got == ["own 1"]
        worker.runtime.pause(False)
        await eventually_async(lambda: sorted(got) == ["0 1", "own 1", "own 2"])
        await eventually_async(lambda: nothing_left(redis))


async def test_two_workers_share_them(redis: Any, sync: Any, every_server: Any) -> None:
    ids = trimmed(sync, 400)
    got: list[str] = []

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        await asyncio.sleep(0.001)
        got.append(message.id)

    assert await replay_all(redis) == ["replayed"] * 400
    workers = [Worker(every_server.url, [handle], SharedState(), name=f"host:{n}", **QUICK) for n in range(2)]
    await eventually_async(lambda: nothing_left(redis))
    assert sorted(got) == sorted(ids)
    assert all(worker.shared.get(SlotField.DONE) for worker in workers)
    for worker in workers:
        await worker.stop()
        assert worker.faults == []


async def test_a_full_server_keeps_the_letter(redis: Any, sync: Any) -> None:
    trimmed(sync, 1)
    found = await letters(redis, STREAM, GROUP)
    sync.config_set("maxmemory", 1)
    try:
        [outcome] = await replay(redis, found)
    finally:
        sync.config_set("maxmemory", 0)
    assert (outcome.outcome, outcome.as_dict()["error"].partition(":")[0]) == ("refused", "OOM")
    assert sync.xlen(DEAD) == 1 and not sync.exists(COPIES)


async def test_of_two_who_replay_the_same_one_wins(redis: Any, sync: Any, every_server: Any) -> None:
    trimmed(sync, 200)
    found = await letters(redis, STREAM, GROUP)
    async with every_server.client() as other:
        both: list[list[Outcome]] = await asyncio.gather(replay(redis, found), replay(other, found))
    outcomes = [outcome.outcome for each in both for outcome in each]
    assert (outcomes.count("replayed"), outcomes.count("gone")) == (200, 200)
    assert sync.xlen(COPIES) == 200 and sync.xlen(DEAD) == 0


async def test_the_stream_itself_may_be_gone(redis: Any, sync: Any) -> None:
    [entry] = trimmed(sync, 1)
    sync.delete(STREAM)
    assert await replay_all(redis) == ["replayed"]
    assert [info.id for info in await inspect.pending(redis, STREAM, GROUP)] == [entry]


fields_of_a_message = st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), min_size=1, max_size=5)


@given(st.integers(0, 2**64 - 1), fields_of_a_message)
def test_a_copy_tells_of_its_message(ms: int, fields: list[tuple[bytes, bytes]]) -> None:
    flat = [part for pair in fields for part in pair]
    entry = f"{ms}-1".encode()
    assert original(b"9-9", [ORIGIN.encode(), entry, *flat]) == (entry, flat)
    sources = sources_of(STREAM, GROUP, SharedState().slot(0))
    assert sources is not None
    [copy] = sources[1].messages([[b"9-9", [ORIGIN.encode(), entry, *flat]]])
    assert (copy.entry, copy.id, copy.flat, copy.recorded) == (b"9-9", entry.decode(), flat, True)
    assert (copy.stream, copy.group) == (STREAM, GROUP)


@given(st.lists(st.binary(max_size=30) | st.sampled_from([ORIGIN.encode(), b"1-1"])))
def test_an_entry_that_is_no_copy_stands_for_itself_or_at_least_harms_nobody(flat: list[bytes]) -> None:
    flat = flat[: len(flat) // 2 * 2]
    origin, found = original(b"9-9", flat)
    assert origin.count(b"-") == 1 and len(found) % 2 == 0


async def test_whoever_may_have_a_handler_may_have_its_copies_too(redis: Any, sync: Any, every_server: Any) -> None:
    """Two rows of shared memory for each."""
    trimmed(sync, 1)
    assert await replay_all(redis) == ["replayed"]
    got: list[str] = []

    def make(group: str) -> Any:
        @handler(STREAM, group=group)
        async def handle(message: Message) -> None:
            got.append(message.id)

        return handle

    functions = [make(GROUP), *(make(f"other{n}") for n in range(HANDLERS_MAX - 1))]
    worker = Worker(every_server.url, functions, SharedState(), **QUICK)
    await eventually_async(lambda: nothing_left(redis), 30)
    await worker.stop()
    assert len(got) == 1 and not worker.faults
    with pytest.raises(HandlerError, match="at most 64"):
        Worker(every_server.url, [*functions, make("one more")], SharedState())
