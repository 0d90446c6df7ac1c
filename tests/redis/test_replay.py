"""Replays on every kind of server: to the own group alone, once, and the letter is kept unless the copy was made."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.broker.dead_letters import by_ids
from supervisor.broker.replay import Outcome, drop, replay
from supervisor.core.dead_letter import Filter, Letter
from supervisor.keys import crashes_key, dead_key, replay_key, retries_key
from tests.support.letters import add_dead_letter, letters

pytestmark = pytest.mark.usefixtures("every_server")
STREAM, GROUP = "events", "mail"
DEAD, COPIES = dead_key(STREAM, GROUP), replay_key(STREAM, GROUP)


def told(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(outcome.outcome for outcome in outcomes)


async def test_a_copy_goes_to_the_groups_replay_stream_as_if_never_tried(redis: Any, sync: Any) -> None:
    _, entry = add_dead_letter(sync, STREAM, GROUP, {"n": 1})
    sync.xgroup_create(STREAM, "other", "$")
    sync.hset(retries_key(STREAM, GROUP), entry, "4:1")
    sync.hset(crashes_key(STREAM, GROUP), entry, "2")
    assert told(await replay(redis, await letters(redis, STREAM, GROUP))) == {"replayed": 1}
    [(_, copy)] = sync.xrange(COPIES)
    assert copy == {b"supervisor:origin": entry.encode(), b"n": b"1"}
    assert [group["name"] for group in sync.xinfo_groups(COPIES)] == [GROUP.encode()], "and to no other"
    assert sync.exists(retries_key(STREAM, GROUP), crashes_key(STREAM, GROUP)) == 0
    assert sync.xlen(DEAD) == 0


async def test_of_two_who_replay_the_same_letters_one_wins_each(redis: Any, sync: Any, every_server: Any) -> None:
    for n in range(300):
        add_dead_letter(sync, STREAM, GROUP, {"n": n})
    found = await letters(redis, STREAM, GROUP)
    async with every_server.client() as other:
        outcomes = await asyncio.gather(replay(redis, found), replay(other, found), drop(other, found))
    assert sum((told(each) for each in outcomes), Counter())["gone"] == 600
    replayed = told(outcomes[0])["replayed"] + told(outcomes[1])["replayed"]
    assert replayed + told(outcomes[2])["dropped"] == 300
    assert sync.xlen(COPIES) == replayed and sync.xlen(DEAD) == 0


async def test_what_is_being_handled_again_is_taken_from_nobody(redis: Any, sync: Any) -> None:
    _, entry = add_dead_letter(sync, STREAM, GROUP, {"n": 1})
    sync.xgroup_destroy(STREAM, GROUP)
    sync.xgroup_create(STREAM, GROUP, "0")
    sync.xreadgroup(GROUP, "host:0", {STREAM: ">"})
    assert told(await replay(redis, await letters(redis, STREAM, GROUP))) == {"pending": 1}
    assert [row["consumer"] for row in sync.xpending_range(STREAM, GROUP, "-", "+", 10)] == [b"host:0"]
    assert sync.xlen(DEAD) == 1
    sync.xack(STREAM, GROUP, entry)
    assert told(await replay(redis, await letters(redis, STREAM, GROUP))) == {"replayed": 1}


async def test_without_its_group_a_letter_stays(redis: Any, sync: Any) -> None:
    add_dead_letter(sync, STREAM, GROUP, {"n": 1})
    sync.xgroup_destroy(STREAM, GROUP)
    assert told(await replay(redis, await letters(redis, STREAM, GROUP))) == {"no-group": 1}
    assert sync.xlen(DEAD) == 1 and sync.xinfo_groups(STREAM) == []


async def test_where_the_stream_is_of_another_type_a_letter_stays(redis: Any, sync: Any) -> None:
    add_dead_letter(sync, STREAM, GROUP, {"n": 1})
    sync.delete(STREAM)
    sync.set(STREAM, "text")
    [outcome] = await replay(redis, await letters(redis, STREAM, GROUP))
    assert outcome.outcome == "refused" and outcome.as_dict()["error"].startswith("WRONGTYPE: ")
    assert sync.xlen(DEAD) == 1 and sync.get(STREAM) == b"text"


async def test_a_full_server_refuses_a_replay_and_keeps_the_letter(redis: Any, sync: Any) -> None:
    add_dead_letter(sync, STREAM, GROUP, {"n": 1})
    sync.xgroup_create(COPIES, GROUP, "0", mkstream=True)  # as a worker does, so nothing is missing but memory
    found = await letters(redis, STREAM, GROUP)
    sync.config_set("maxmemory", 1)
    try:
        [outcome] = await replay(redis, found)
    finally:
        sync.config_set("maxmemory", 0)
    assert (outcome.outcome, outcome.as_dict()["error"].partition(":")[0]) == ("refused", "OOM")
    assert (sync.xlen(DEAD), sync.xlen(COPIES)) == (1, 0)
    assert told(await replay(redis, found)) == {"replayed": 1}


async def test_letters_are_found_by_their_messages_ids(redis: Any, sync: Any) -> None:
    first, _ = add_dead_letter(sync, STREAM, GROUP, {"n": 1}, entry="5-0", letter="10-0")
    later, _ = add_dead_letter(sync, STREAM, GROUP, {"n": 2}, entry="20-0", letter="15-0")  # newer than its letter
    for n in range(30, 60):
        add_dead_letter(sync, STREAM, GROUP, {"n": n}, entry=f"{n}-0", letter=f"{n + 40}-0")
    found = await by_ids(redis, STREAM, GROUP, ["5-0", "20-0", "45-0", "70-0", "3-3"])
    assert {id_: letter.letter_id for id_, letter in found.items()} == {
        "5-0": first, "20-0": later, "45-0": "85-0", "70-0": "70-0",
    }  # fmt: skip
    assert await by_ids(redis, STREAM, GROUP, ["20-0"], scan_max=5) == {}, "it looks no further than it may"


@given(
    st.builds(Filter, st.text(max_size=3), st.text(max_size=3), st.text(max_size=3), st.integers(0, 5)),
    st.text(max_size=5), st.text(max_size=5), st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=2),
    st.integers(0, 10),
)  # fmt: skip
def test_a_filter_means_every_part_of_it(
    wanted: Filter, reason: str, handler: str, fields: dict[str, str], age_ms: int
) -> None:
    letter = Letter(
        letter_id="9-0", stream=STREAM, group=GROUP, id="1-0", reason=reason, deliveries=1, handler=handler,
        worker="host:0", dead_at_ms=100 - age_ms, error="", traceback="", signal="", exit_code=None, stack="", halts="",
        fields=fields,
    )  # fmt: skip
    parts = [
        wanted.reason.lower() in reason.lower(),
        wanted.handler.lower() in handler.lower(),
        wanted.text.lower() in "\n".join(["1-0", "", *fields, *fields.values()]).lower(),
        age_ms >= wanted.older_than_ms,
    ]
    assert wanted.fits(letter, 100) == all(parts)
    if wanted.empty:
        assert wanted.fits(letter, 100)
