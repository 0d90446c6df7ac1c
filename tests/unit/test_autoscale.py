"""Autoscaling: the number of workers settles at what the load needs and never leaves its bounds."""

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.arbiter import autoscaler
from supervisor.core.autoscale import (
    DOWN_AFTER_S,
    DOWN_AFTER_S_MAX,
    LOW_SHARE,
    UP_AFTER_S,
    Bounds,
    Trend,
    decide,
)
from supervisor.shared_state import HeaderField, SharedState, SlotField

#: Messages that one worker completes per second, and how long a new worker needs to start.
PACE, BOOT_S = 100, 1
HOUR_S = 3600
SHARED = SharedState()
SILENT = SimpleNamespace(info=lambda *_, **__: None)


class Factory:
    """A backlog and workers under the arbiter's real autoscaler, in steps of one second."""

    def __init__(self, load: Callable[[int], float], *, workers_max: int = 16) -> None:
        self.load, self.now_s, self.backlog = load, 0, 0.0
        self.steps: list[tuple[int, int, int]] = []
        self.slots: dict[int, int] = {0: 0}
        pool = SimpleNamespace(workers_min=1, workers_max=workers_max, backlog_limit_s=10.0)
        self.shared = SHARED
        self.scaler = autoscaler.Autoscaler(self, SimpleNamespace(rolling=False), pool, SILENT)
        for word in (SlotField.DONE, SlotField.PID):
            SHARED.slot(0).set(word, 0)

    @property
    def size(self) -> int:
        return len(self.slots)

    def scale(self, workers: int) -> None:
        self.steps.append((self.now_s, self.size, workers))
        self.slots = {number: self.slots.get(number, self.now_s + BOOT_S) for number in range(workers)}

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1
            working = sum(ready_s <= self.now_s for ready_s in self.slots.values())
            self.backlog += self.load(self.now_s)
            done = min(self.backlog, working * PACE)
            self.backlog -= done
            SHARED.slot(0).add(SlotField.DONE, int(done))
            SHARED.set(HeaderField.BACKLOG, int(self.backlog))
            SHARED.set(HeaderField.BACKLOG_NS, self.now_s * 1_000_000_000)
            self.scaler.check()


@pytest.fixture
def factory(monkeypatch):
    made: list[Factory] = []
    clock = SimpleNamespace(monotonic=lambda: float(made[-1].now_s))
    monkeypatch.setattr(autoscaler, "time", clock)

    def make(load, **options) -> Factory:
        made.append(Factory(load, **options))
        return made[-1]

    return make


@pytest.mark.parametrize("needed", [0.5, 3.95, *(pytest.param(n, marks=pytest.mark.long) for n in (3.5, 15.9))])
def test_the_pool_size_settles_at_what_the_load_needs(factory, needed: float) -> None:
    here = factory(lambda _now_s: needed * PACE)
    here.run(2 * HOUR_S)
    assert here.size in (math.ceil(needed), math.ceil(needed) - 1)
    before = len(here.steps)
    here.run(3 * HOUR_S)
    later = here.steps[before:]
    assert {workers for _, _, workers in later} <= {math.ceil(needed), math.ceil(needed) - 1}
    # One step down in each of the longest waits, and its reversal.
    assert len(later) <= 2 * (3 * HOUR_S / DOWN_AFTER_S_MAX + 1)
    assert here.backlog / PACE < 10.0 * math.ceil(needed) + 60


def test_a_burst_gets_workers_in_seconds_and_they_stay_for_a_minute(factory) -> None:
    here = factory(lambda now_s: 1550.0 if now_s > 100 else 50.0)
    here.run(115)
    assert [workers for _, _, workers in here.steps] == [2, 4, 8, 16]
    here.load = lambda _now_s: 50.0
    emptied_s = 115 + next(second for second in range(600) if (here.run(1) or here.backlog == 0))
    here.run(1000)
    downs = [(at_s, workers) for at_s, _, workers in here.steps if at_s > 115]
    assert [workers for _, workers in downs] == list(range(15, 0, -1)), "one at a time"
    times_s = [emptied_s, *(at_s for at_s, _ in downs)]
    assert all(after - before >= DOWN_AFTER_S - 5 for before, after in itertools.pairwise(times_s))


def test_each_reverted_step_down_doubles_the_wait(factory) -> None:
    here = factory(lambda _now_s: 3.5 * PACE)
    here.run(9000)
    downs = [at_s for at_s, before, after in here.steps if after < before]
    ups = [at_s for at_s, before, after in here.steps if after > before and at_s > downs[0]]
    waits_s = [down - up for up, down in zip(ups, downs[1:], strict=False)]
    # A wait starts when the backlog is gone, which takes a while.
    for wait_s, least_s in zip(waits_s, [120, 240, 480, 960, 960], strict=False):
        assert least_s <= wait_s < least_s + 90
    assert len(waits_s) >= 5


def test_a_rise_long_after_a_step_down_does_not_revert_it(factory) -> None:
    every_s = 5400
    here = factory(lambda now_s: 1550.0 if now_s % every_s < 40 else 50.0)
    here.run(3 * every_s)
    for busy_s in range(every_s, 3 * every_s, every_s):
        assert here.steps, "the load rose"
        took_s = next(at_s for at_s, _, after in here.steps if after == 1 and at_s > busy_s) - busy_s
        assert took_s < 16 * DOWN_AFTER_S + 60


def test_all_workers_start_when_nothing_completes(factory) -> None:
    here = factory(lambda _now_s: 1.0, workers_max=5)
    here.slots = {0: 10**9}
    here.scale = lambda workers: setattr(here, "slots", dict.fromkeys(range(workers), 10**9))  # type: ignore[method-assign]
    here.run(60)
    assert here.size == 5


Clear = st.one_of(st.sampled_from([0.0, 0.5, 5.0, 10.0, 10.1, 25.0, math.inf]), st.floats(0, 100))


@given(
    st.integers(1, 8),
    st.integers(0, 8),
    st.lists(st.tuples(Clear, st.integers(1, 90)), max_size=60),
    st.integers(0, 20),
)
def test_bounds_waits_and_steps_hold_under_any_load(
    least: int, more: int, seen: list[tuple[float, int]], workers: int
) -> None:
    bounds = Bounds(least, least + more, 10.0)
    trend, now_s, stepped_s = Trend(), 0.0, 0.0
    high_s = low_s = 0.0
    for clear_s, lasts_s in seen:
        for _ in range(lasts_s):
            now_s += 1.0
            high_s = high_s if clear_s > bounds.clear_s else now_s + 1
            low_s = low_s if clear_s <= bounds.clear_s * LOW_SHARE else now_s + 1
            before = workers
            trend, workers = decide(trend, workers, clear_s, bounds, now_s)
            assert bounds.workers_min <= workers <= bounds.workers_max
            assert DOWN_AFTER_S <= trend.down_after_s <= DOWN_AFTER_S_MAX
            if before in range(least, least + more + 1) and workers != before:
                since_s = now_s - max(high_s if workers > before else low_s, stepped_s)
                assert since_s >= (UP_AFTER_S if workers > before else DOWN_AFTER_S) - 1
                assert before - 1 <= workers <= 2 * before
            if workers != before:
                stepped_s = now_s
            elif workers < bounds.workers_max:
                assert now_s - max(high_s, stepped_s) <= UP_AFTER_S, "too few for too long"
