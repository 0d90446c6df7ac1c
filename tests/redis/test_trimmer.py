"""Retention on every server: nothing that a group has not settled is ever trimmed, and all that may go, goes."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.broker import inspect
from supervisor.broker.scripts import TRIM
from supervisor.core.replayed_copy import ORIGIN
from supervisor.keeper.trimmer import LIMIT
from supervisor.keys import crashes_key, replay_key, retries_key
from supervisor.overview import overview
from supervisor.settings.model import Settings
from tests.redis.trimming import AGE_S, STREAM, Id, add, ids, now_ms, order, read


def trim(client: Any, *, age_s: float = 0, length: int = 0, limit: int = LIMIT, groups: Any = ()) -> tuple[int, str]:
    """One call."""
    keys = [STREAM, *(key(STREAM, group) for group in groups for key in (retries_key, crashes_key))]
    removed, holder = client.eval(TRIM.text, len(keys), *keys, int(age_s * 1000), length, limit, *groups)
    return removed, holder.decode()


def trim_all(client: Any, **limits: Any) -> str:
    """Until nothing more goes; who holds back the rest."""
    for _ in range(1000):
        removed, holder = trim(client, **limits)
        if not removed:
            return holder
    raise AssertionError("it never ends")


def unsettled(client: Any, group: str) -> set[Id]:
    """What the group has not read or not acked, of what the stream holds."""
    (info,) = [one for one in client.xinfo_groups(STREAM) if one["name"].decode() == group]
    held = {order(row["message_id"]) for row in client.xpending_range(STREAM, group, "-", "+", 100_000)}
    last = order(info["last-delivered-id"])
    return {one for one in ids(client) if one in held or one > last}


@pytest.fixture
def client(every_server: Any) -> Any:
    with every_server.sync() as made:
        yield made


def test_entries_that_every_group_has_settled_go_by_age(client: Any) -> None:
    old = add(client, 350, AGE_S + 60)
    add(client, 10)
    for group in ("a", "b"):
        client.xgroup_create(STREAM, group, "0")
    read(client, "a", 1000)
    assert trim_all(client, age_s=AGE_S) == "b"
    assert len(ids(client)) == 360
    read(client, "b", 250)
    assert trim_all(client, age_s=AGE_S) == "b"
    assert ids(client)[0] == order(old[250])
    read(client, "b", 1000)
    assert trim_all(client, age_s=AGE_S) == ""
    assert len(ids(client)) == 10, "what is younger stays"


def test_entries_that_every_group_has_settled_go_by_length(client: Any) -> None:
    entries = add(client, 350)
    client.xgroup_create(STREAM, "a", "0")
    assert trim_all(client, length=7) == "a" and len(ids(client)) == 350
    read(client, "a", 320)
    (held,) = read(client, "a", 1, ack=False)
    read(client, "a", 1000)
    assert trim_all(client, length=7) == "a"
    assert ids(client)[0] == order(held) == order(entries[320])
    client.xack(STREAM, "a", held)
    assert trim_all(client, length=7) == ""
    assert ids(client) == [order(entry) for entry in entries[-7:]], "exactly that many are kept"


def test_without_a_group_or_without_one_of_ours_nothing_goes(client: Any) -> None:
    assert trim(client, age_s=1, length=1, groups=["a"]) == (0, "")
    add(client, 5, AGE_S)
    assert trim(client, age_s=1, length=1) == (0, "") == trim(client, age_s=1, length=1, groups=["a"])
    client.xgroup_create(STREAM, "stranger", "$")
    assert trim(client, age_s=1, length=1, groups=["a"]) == (0, "")
    client.xgroup_create(STREAM, "a", "$")
    assert trim(client, age_s=1, length=1, groups=["a"])[0] == 5


def test_what_came_back_to_a_group_stays(client: Any) -> None:
    entries = add(client, 30, AGE_S)
    client.xgroup_create(STREAM, "a", "0")
    read(client, "a", 30)
    client.xclaim(STREAM, "a", "other", 0, [entries[3]], force=True, justid=True)
    assert trim_all(client, age_s=1) == "a"
    assert ids(client)[0] == order(entries[3])
    client.xack(STREAM, "a", entries[3])
    client.xgroup_setid(STREAM, "a", entries[10])
    assert trim_all(client, age_s=1) == "a"
    assert ids(client)[0] == order(entries[11])


def test_ids_of_any_size_are_told_apart(client: Any) -> None:
    # More digits than a double holds, carries, and sequences that have no next one.
    big = 2**64 - 1
    names = [f"9-{big}", "10-9", "10-10", f"10-{big - 1}", f"10-{big}", f"{2**60}-99", f"{2**60}-100"]
    for name in names:
        client.xadd(STREAM, {"n": 1}, id=name)
    client.xgroup_create(STREAM, "a", "0")
    for left in range(len(names), 0, -1):
        (entry,) = read(client, "a", 1, ack=False)
        trim_all(client, length=1)
        assert ids(client)[0] == order(entry) and len(ids(client)) == left
        client.xack(STREAM, "a", entry)


def test_what_is_months_younger_than_its_neighbour_stays(client: Any) -> None:
    day_ms = 86_400_000
    for days in (1, 2, 100, 101):
        client.xadd(STREAM, {"n": 1}, id=f"{days * day_ms}-0")
    client.xgroup_create(STREAM, "a", "0")
    read(client, "a", 2)
    assert trim_all(client, length=1) == "a"
    assert ids(client) == [(100 * day_ms, 0), (101 * day_ms, 0)]


def test_a_call_removes_no_more_than_it_may(client: Any) -> None:
    add(client, 2000, AGE_S)
    client.xgroup_create(STREAM, "a", "$")
    removed = [trim(client, age_s=1, limit=500)[0] for _ in range(5)]
    assert sum(removed) == 2000 and max(removed) <= 500


def test_records_of_trimmed_messages_go_too(client: Any) -> None:
    entries = add(client, 5, AGE_S)
    client.xgroup_create(STREAM, "a", "0")
    read(client, "a", 3)
    read(client, "a", 1, ack=False)
    for key in (retries_key(STREAM, "a"), crashes_key(STREAM, "a")):
        client.hset(key, mapping={entry.decode(): "1:0" for entry in entries} | {"odd": "x"})
    assert trim(client, age_s=1, groups=["a"])[0] == 3
    for key in (retries_key(STREAM, "a"), crashes_key(STREAM, "a")):
        assert set(client.hkeys(key)) == {*entries[3:], b"odd"}


async def test_lag_and_oldest_stay_right_after_a_trim(every_server: Any) -> None:
    with every_server.sync() as client:
        add(client, 350, AGE_S)
        client.xgroup_create(STREAM, "all", "0")
        client.xgroup_create(STREAM, "half", ids_text(client)[199])
        client.xgroup_create(STREAM, "new", "$")
        for group, count in (("all", 300), ("half", 50)):
            read(client, group, count)
        assert trim_all(client, age_s=1) == "half"
        assert len(ids(client)) == 100
        expected = {"all": 50, "half": 100, "new": 0}
        for late in (0, 3):
            add(client, late)
            async with every_server.client() as redis:
                found = await inspect.groups(redis, [(STREAM, group) for group in expected])
            assert {one.group: one.lag for one in found} == {name: lag + late for name, lag in expected.items()}
            assert not any(one.lag_at_least for one in found)
            assert {one.group: one.oldest_id for one in found}["half"] == ids_text(client)[0]


async def test_a_replayed_message_holds_nothing_back(every_server: Any) -> None:
    """The copy is in another stream: the group must not be reported, since its removal would be advised."""
    limits = Settings(consumer={"max_age": 60})  # type: ignore[arg-type]
    with every_server.sync() as client:
        entry = add(client, 1)[0]
        client.xgroup_create(STREAM, "a", "0")
        client.xadd(replay_key(STREAM, "a"), {ORIGIN: "1-1", "n": 1}, id=f"{now_ms(client) - AGE_S * 1000}-0")
        async with every_server.client() as redis:
            [found] = await overview(redis, limits, [STREAM], [])
        [group] = found["groups"]
        assert (group["pending"], group["oldest_id"]) == (1, entry.decode()) and group["oldest_s"] >= AGE_S
        assert found["retention"]["held_by"] is None
        client.delete(STREAM)
        old = add(client, 1, AGE_S)[0]
        client.xgroup_create(STREAM, "a", "0")
        async with every_server.client() as redis:
            [found] = await overview(redis, limits, [STREAM], [])
        assert (found["groups"][0]["oldest_id"], found["retention"]["held_by"]) == (old.decode(), "a")


def ids_text(client: Any) -> list[str]:
    return [entry.decode() for entry, _ in client.xrange(STREAM)]


GROUPS = st.sampled_from("ab")
STEPS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 130), st.sampled_from([2 * AGE_S, AGE_S + 60, 60, 0])),
    st.tuples(st.just("make"), GROUPS, st.sampled_from(["0", "$"])),
    st.tuples(st.just("read"), GROUPS, st.sampled_from([1, 45, 300])),
    st.tuples(st.just("ack"), GROUPS, st.sampled_from([1, 45, 300, 300]), st.booleans()),
    st.tuples(st.just("claim"), GROUPS, st.integers(0, 200)),
    st.tuples(st.just("delete"), st.integers(0, 200)),
    st.tuples(st.just("destroy"), GROUPS),
    st.tuples(st.just("trim"), st.sampled_from([0, AGE_S, 10]), st.sampled_from([0, 1, 60, 150]), st.booleans()),
)
#: What most examples need to come to a trim that has something to do and something to leave.
BEGIN: list[tuple[Any, ...]] = [
    *(("add", 250, 2 * AGE_S), ("make", "a", "0"), ("read", "a", 170), ("ack", "a", 20, True)),
]
END: list[tuple[Any, ...]] = [("trim", AGE_S, 60, True)]


def test_whatever_groups_do_nothing_unread_or_pending_disappears(client: Any) -> None:
    totals: Counter[str] = Counter()

    @settings(max_examples=40)
    @given(steps=st.lists(STEPS, min_size=3, max_size=20))
    def run(steps: list[tuple[Any, ...]]) -> None:
        client.flushdb()
        world = World(client, totals)
        for name, *words in [*BEGIN, *steps, *END]:
            getattr(world, name)(*words)

    run()
    assert min(totals["removed"], totals["held by pending"], totals["held by unread"]) > 100, totals


class World:
    """A stream and its groups, and what is asked of a trim."""

    def __init__(self, client: Any, totals: Counter[str]) -> None:
        self.client = client
        self.totals = totals
        self.start_ms = now_ms(client)
        self.groups: set[str] = set()

    def add(self, count: int, age_s: int) -> None:
        last = self.client.xrevrange(STREAM, count=1)
        least = order(last[0][0])[0] + 1 if last else 0
        top = max(least, order(self.last())[0] + 1, self.start_ms - age_s * 1000)
        for number in range(count):
            self.client.xadd(STREAM, {"n": number}, id=f"{top}-{number}")

    def last(self) -> bytes:
        found: bytes = self.client.xinfo_stream(STREAM)["last-generated-id"] if self.client.exists(STREAM) else b"0-0"
        return found

    def make(self, group: str, start: str) -> None:
        if group not in self.groups:
            self.client.xgroup_create(STREAM, group, start, mkstream=True)
            self.groups.add(group)

    def destroy(self, group: str) -> None:
        if group in self.groups:
            self.client.xgroup_destroy(STREAM, group)
            self.groups.discard(group)

    def read(self, group: str, count: int) -> None:
        if group in self.groups:
            read(self.client, group, count, ack=False)

    def ack(self, group: str, count: int, first: bool) -> None:
        if group in self.groups:
            rows = self.client.xpending_range(STREAM, group, "-", "+", 100_000)
            chosen = [row["message_id"] for row in (rows[:count] if first else rows[-count:])]
            if chosen:
                self.client.xack(STREAM, group, *chosen)

    def claim(self, group: str, at: int) -> None:
        rows = self.client.xrange(STREAM)
        if group in self.groups and rows:
            self.client.xclaim(STREAM, group, "other", 0, [rows[at % len(rows)][0]], force=True, justid=True)

    def delete(self, at: int) -> None:
        if rows := self.client.xrange(STREAM):
            self.client.xdel(STREAM, rows[at % len(rows)][0])

    def trim(self, age_s: int, length: int, whole: bool) -> None:
        before = ids(self.client)
        kept = {group: unsettled(self.client, group) for group in self.groups}
        floor = self.floor()
        early_ms, late_ms = now_ms(self.client) - age_s * 1000, 0
        if whole:
            trim_all(self.client, age_s=age_s, length=length)
        else:
            trim(self.client, age_s=age_s, length=length, limit=120)
        late_ms = now_ms(self.client) - age_s * 1000
        after = ids(self.client)
        assert {group: unsettled(self.client, group) for group in self.groups} == kept
        excess = max(0, len(before) - length) if length else 0

        def may_go(at: int, limit_ms: int) -> bool:
            return before[at] < floor and (at < excess or (bool(age_s) and before[at][0] < limit_ms))

        gone = set(before) - set(after)
        self.count(gone, {at for at in before if at >= floor and at[0] < late_ms})
        assert gone <= {before[at] for at in range(len(before)) if may_go(at, late_ms)}
        if whole:
            assert {before[at] for at in range(len(before)) if may_go(at, early_ms)} <= gone

    def count(self, gone: set[Id], held: set[Id]) -> None:
        """That there was something to go and something to hold."""
        self.totals["removed"] += len(gone)
        for group in self.groups:
            rows = self.client.xpending_range(STREAM, group, "-", "+", 100_000)
            pending = {order(row["message_id"]) for row in rows}
            self.totals["held by pending"] += len(held & pending)
            self.totals["held by unread"] += len(held & unsettled(self.client, group) - pending)

    def floor(self) -> Id:
        """Computed from the definition: the lowest id, over all groups, that is pending or after the last delivered."""
        lows = []
        for info in self.client.xinfo_groups(STREAM) if self.groups else ():
            ms, seq = order(info["last-delivered-id"])
            rows = self.client.xpending_range(STREAM, info["name"].decode(), "-", "+", 1)
            lows += [(ms, seq + 1), *(order(row["message_id"]) for row in rows)]
        return min(lows, default=(0, 0))
