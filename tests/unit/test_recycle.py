"""Workers beyond a limit are recycled, one at a time, and no others."""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from supervisor.arbiter import recycler
from supervisor.core.recycle import GROWN_UP_S, RecycleLimits, WorkerUsage, most_overdue
from supervisor.core.slot import Slot, State
from supervisor.shared_state import SharedState, SlotField

Limit = st.just(0) | st.integers(1, 1000)
Usages = st.lists(
    st.builds(WorkerUsage, st.integers(0, 9), st.floats(0, 2000), st.integers(0, 2000), st.integers(-500, 2000)),
    max_size=8,
    unique_by=lambda usage: usage.slot,
)


def shares(usage: WorkerUsage, limits: RecycleLimits) -> dict[str, float]:
    """Return the share of each limit that is used up."""
    found = {
        "memory": (usage.growth_bytes if usage.age_s >= GROWN_UP_S else 0, limits.growth_bytes),
        "messages": (usage.messages, limits.messages),
        "age": (usage.age_s, limits.age_s),
    }
    return {reason: used / limit for reason, (used, limit) in found.items() if limit}


@given(Usages, st.builds(RecycleLimits, Limit, Limit, Limit))
@example([WorkerUsage(0, 10.0, 100, 0), WorkerUsage(1, 10.0, 99, 0)], RecycleLimits(messages=100))
def test_the_worker_furthest_beyond_a_limit_is_found(workers: list[WorkerUsage], limits: RecycleLimits) -> None:
    found = most_overdue(workers, limits)
    worst = max((share for usage in workers for share in shares(usage, limits).values()), default=0.0)
    if worst < 1.0:
        assert found is None
    else:
        assert found is not None
        slot, reason = found
        assert shares(next(usage for usage in workers if usage.slot == slot), limits)[reason] == worst


SECOND_NS = 1_000_000_000
MEGABYTE = 1_000_000
RESTART_S = 3.0
SHARED = SharedState()


class Plant:
    """Workers that age, grow and work under the arbiter's real recycler, in steps of one second."""

    def __init__(self, workers: int, **limits: float) -> None:
        self.now_s = 1000.0
        none = {"recycle_growth_mb": 0, "recycle_messages": 0, "recycle_age_s": 0.0, "drain_s": 25.0}
        self.slots = {number: self.born(number) for number in range(workers)}
        self.logged: list[dict[str, Any]] = []
        #: Megabytes a second; messages a second; megabytes that a worker has from the start.
        self.grows: dict[int, float] = defaultdict(float)
        self.works: dict[int, int] = defaultdict(int)
        self.whole_mb = 50.0
        self.shared, self.rolling = SHARED, False
        log = SimpleNamespace(info=lambda _event, **fields: self.logged.append({"at_s": self.now_s, **fields}))
        self.recycler = recycler.Recycler(self, self, SimpleNamespace(**none | limits), log)

    def born(self, number: int) -> Slot:
        pid = number + 100 * int(self.now_s)
        return Slot(number, State.READY, pid=pid, spawned_s=self.now_s, ready_s=self.now_s)

    def private_bytes(self, pid: int) -> int:
        slot = self.slots[pid % 100]
        assert slot.ready_s is not None
        return int((self.whole_mb + self.grows[slot.number] * (self.now_s - slot.ready_s)) * MEGABYTE)

    def drain(self, number: int, until_s: float) -> None:
        assert until_s == self.now_s + 25.0
        assert all(slot.state is State.READY for slot in self.slots.values()), "two workers drain at the same time"
        self.slots[number] = replace(self.slots[number], state=State.DRAINING, drain_until_s=self.now_s + RESTART_S)

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1
            for number, slot in self.slots.items():
                if slot.state is State.READY:
                    SHARED.slot(number).add(SlotField.DONE, self.works[number])
                elif self.now_s >= slot.drain_until_s:
                    self.slots[number] = self.born(number)
            self.recycler.check()


@pytest.fixture
def plant(monkeypatch):
    made: list[Plant] = []
    monkeypatch.setattr(recycler, "time", SimpleNamespace(monotonic=lambda: made[-1].now_s))

    def make(workers: int, **limits: float) -> Plant:
        made.append(Plant(workers, **limits))
        monkeypatch.setattr(recycler, "_private_bytes", made[-1].private_bytes)
        return made[-1]

    return make


def test_workers_of_the_same_age_are_recycled_one_at_a_time(plant) -> None:
    here = plant(6, recycle_age_s=300.0)
    here.run(3000)
    assert {line["reason"] for line in here.logged} == {"age"}
    for number in range(6):
        left_s = [line["at_s"] for line in here.logged if line["slot"] == number]
        assert 9 <= len(left_s) <= 10
        lives_s = [after - before - RESTART_S for before, after in zip([997.0, *left_s], left_s, strict=False)]
        assert all(300 <= life_s <= 300 + 6 * (RESTART_S + 1) for life_s in lives_s)


def test_growth_counts_from_ready_not_total_size(plant) -> None:
    here = plant(4, recycle_growth_mb=100)
    here.whole_mb = 5000.0
    here.grows |= {1: 2.0, 2: 0.01}
    here.run(1000)
    assert {line["slot"] for line in here.logged} == {1}
    # 50 s to grow, and 3 s to come back.
    assert 17 <= len(here.logged) <= 19
    assert all(line["growth_mb"] >= 100 for line in here.logged)


def test_messages_count_from_the_start_of_the_incarnation(plant) -> None:
    SHARED.slot(0).set(SlotField.DONE, 123_456)
    here = plant(2, recycle_messages=1000)
    here.works |= {0: 10, 1: 40}
    here.run(1100)
    left = [[line for line in here.logged if line["slot"] == number] for number in (0, 1)]
    assert len(left[0]) == pytest.approx(1100 / 104, abs=1.5)
    assert len(left[1]) == pytest.approx(1100 / 29, abs=3)
    assert all(1000 <= line["messages"] <= 1000 + 4 * 40 for line in here.logged)


def test_limits_of_different_kinds_are_compared(plant) -> None:
    here = plant(3, recycle_growth_mb=100, recycle_messages=1000, recycle_age_s=60.0)
    here.grows[2], here.works[1] = 4.0, 100
    here.slots[0] = replace(here.slots[0], state=State.DRAINING, drain_until_s=1050.0)
    here.run(49)
    assert here.logged == [], "not while another worker is draining"
    here.run(20)
    assert [(line["slot"], line["reason"]) for line in here.logged] == [(1, "messages"), (2, "memory"), (1, "messages")]


def test_no_worker_is_recycled_without_a_limit_or_during_a_rolling_restart(plant) -> None:
    here = plant(2)
    here.grows[0], here.works[1] = 100.0, 1000
    here.run(100)
    assert here.logged == []
    here = plant(2, recycle_age_s=10.0)
    here.rolling = True
    here.run(100)
    assert here.logged == []
    here.rolling = None
    here.run(1)
    assert len(here.logged) == 1
