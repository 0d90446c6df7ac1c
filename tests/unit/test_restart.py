"""Crash loops: how often a whole pool starts its workers, and when its breaker opens and closes.

The pool is the arbiter's own (`arbiter.worker_group`), with its slots, backoffs and timers. Only the clock and
the children are simulated, so that minutes pass in milliseconds.
"""

import itertools
import math
import random
import signal
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from supervisor.arbiter import restart_children, worker_group
from supervisor.arbiter.loop import Timer
from supervisor.arbiter.stack_dumps import StackDumps
from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.core import restart_policy
from supervisor.core.restart_policy import CALM_S, CANARY_AFTER_S, CANARY_PROVES_S, WINDOW_S, Breaker, ExitKind
from supervisor.core.slot import Limits, State
from supervisor.errors import EXIT_FAILED, EXIT_OK, WORKER_PLANNED, WORKER_TEMPFAIL
from supervisor.shared_state import SharedState, SlotField

#: Simulated children do not beat.
LIMITS = Limits(boot_s=15.0, beat_s=math.inf, drain_s=25.0)
SHARED, CHANCE = SharedState(), random.Random()
#: LATE_S: a loop wakes up slightly after its timer.
BOOT_S, EXIT_S, LATE_S = 0.1, 0.01, 1e-6


@dataclass(frozen=True)
class Way:
    """How a child behaves: whether it becomes READY, when it exits and with which code."""

    leaves_s: float = math.inf
    code: int = EXIT_FAILED
    ready: bool = True
    #: Messages that it completes before.
    done: int = 0


WELL, CRASH = Way(), Way(0.3)
well, crash = lambda _slot: WELL, lambda _slot: CRASH


class World:
    """A pool in simulated time: its clock, its loop and its children."""

    last: "World"

    def __init__(self, workers: int, way: Callable[[int], Way], seed: int = 1) -> None:
        """`way` returns, by slot, how the next child behaves."""
        World.last = self
        self.now_s, self.way = 1000.0, way
        CHANCE.seed(seed)
        self.starts_s: list[float] = []
        self.crashes_s: list[float] = []
        self.canaries_s: list[float] = []
        self._due: list[Timer] = []
        self._pids, self._slots = itertools.count(100), dict[int, int]()
        self._gone: dict[int, Callable[[Any], None]] = {}
        self.add = self._gone.__setitem__
        silent = SimpleNamespace(**dict.fromkeys(("debug", "info", "warning", "error"), lambda *_, **__: None))
        self.pool = WorkerGroup(SHARED, self._fork, self, self, StackDumps(), LIMITS, silent, lambda: None)
        self.pool.check_interval_s = 1.0
        self.pool.scale(workers)

    def run(self, for_s: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass until `until` is true; return whether it became true."""
        end_s, turns = self.now_s + for_s, 0
        while not until():
            if not self._due or self._due[0].due_s > end_s:
                self.now_s = end_s
                return False
            timer = self._due.pop(0)
            self.now_s, turns = max(self.now_s, timer.due_s) + LATE_S, turns + 1
            assert turns < 1000 + 150 * for_s, "the loop spins"
            if not timer.cancelled:
                timer.callback()
        return True

    def states(self) -> list[State]:
        return [slot.state for slot in self.pool.slots.values()]

    # Stands in for the loop and the children of the pool

    def call_at(self, due_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(due_s, callback)
        insort(self._due, timer, key=attrgetter("due_s"))
        return timer

    def send(self, pid: int, number: signal.Signals) -> None:
        if number is signal.SIGTERM:
            self.call_at(self.now_s + EXIT_S, lambda: self._leave(pid, EXIT_OK, None))

    def kill(self, pid: int) -> None:
        self.call_at(self.now_s + EXIT_S, lambda: self._leave(pid, None, signal.SIGKILL))

    def _fork(self, number: int, _crash: Any) -> int:
        slot, breaker, way, pid = self.pool.slots[number], self.pool.breaker, self.way(number), next(self._pids)
        assert not slot.living
        self._slots[pid] = number
        self.starts_s.append(self.now_s)
        if breaker.is_open and slot.last_exit is not None and slot.last_exit.kind is ExitKind.CRASH:
            assert breaker.canary is None, "two canaries at a time"
            self.canaries_s.append(self.now_s)
        if way.ready:
            self.call_at(
                self.now_s + BOOT_S, lambda: pid in self._gone and SHARED.slot(number).set(SlotField.READY_NS, 1)
            )
        if way.leaves_s < math.inf:
            self.call_at(self.now_s + way.leaves_s, lambda: self._leave(pid, way.code, None, way.done))
        return pid

    def _ready(self, pid: int, number: int) -> None:
        if pid in self._gone:
            SHARED.slot(number).set(SlotField.READY_NS, 1)

    def _leave(self, pid: int, code: int | None, number: int | None, done: int = 0) -> None:
        if pid in self._gone:
            SHARED.slot(self._slots[pid]).add(SlotField.DONE, done)
            if code in (EXIT_FAILED, None):
                self.crashes_s.append(self.now_s)
            SHARED.slot(self._slots[pid]).set(SlotField.EXIT_CODE, 0 if code is None else 1 + code)
            self._gone.pop(pid)((code, number))


@pytest.fixture(autouse=True, scope="module")
def simulated_clock() -> Iterator[None]:
    """Use the clock of the newest World."""
    clock = SimpleNamespace(monotonic=lambda: World.last.now_s, monotonic_ns=lambda: int(World.last.now_s * 1e9))
    with pytest.MonkeyPatch.context() as patch:
        for module, name, simulated in (
            (restart_children, "time", clock),
            (worker_group, "time", clock),
            (restart_children, "random", CHANCE),
        ):
            patch.setattr(module, name, simulated)
        yield


def most_within(times_s: list[float], window_s: float) -> int:
    return max(sum(at_s <= other < at_s + window_s for other in times_s) for at_s in times_s)


def loop_of(*lives_s: float) -> Callable[[int], Way]:
    """Children of every slot crash after these times, in rotation."""
    lives: dict[int, Iterator[float]] = defaultdict(lambda: itertools.cycle(lives_s))
    return lambda slot: Way(next(lives[slot]))


@pytest.mark.parametrize(("workers", "most"), [(1, 16), (2, 16), (4, 18), (8, 34)])
def test_a_pool_that_always_crashes_is_started_a_limited_number_of_times(workers: int, most: int) -> None:
    for seed in range(10):
        world = World(workers, crash, seed)
        world.run(15)
        assert workers + 4 < len(world.starts_s) <= most, seed
        assert world.pool.breaker.is_open == (workers > 1)


@pytest.mark.parametrize("lives_s", [(0.3,), (2,), (9.9,), (0.3, 11), (2, 2, 12), (0.3, 0.3, 0.3, 25)])
@pytest.mark.parametrize("workers", [2, 4])
def test_slow_and_alternating_crash_loops_are_detected(workers: int, lives_s: tuple[float, ...]) -> None:
    world = World(workers, loop_of(*lives_s))
    assert world.run(75, until=lambda: world.pool.breaker.is_open)
    before = len(world.starts_s)
    world.run(3600)
    assert 40 < len(world.starts_s) - before < 70, "about one a minute"
    assert most_within(world.starts_s, WINDOW_S) <= 10 + 2 * workers + 1
    assert most_within(world.starts_s[before + 10 :], WINDOW_S / 2) == 1


def test_canaries_start_one_at_a_time_with_growing_waits() -> None:
    world = World(4, crash)
    world.run(600)
    # Each canary except the first waits from the crash of the one before.
    waits_s = [after - before - 0.3 for before, after in itertools.pairwise(world.canaries_s)]
    assert waits_s == pytest.approx([*CANARY_AFTER_S[1:], *[CANARY_AFTER_S[-1]] * 7], abs=0.01)
    assert world.canaries_s[0] - world.crashes_s[12] == pytest.approx(CANARY_AFTER_S[0], abs=0.01)


def test_a_canary_that_stays_up_closes_the_breaker() -> None:
    world = World(4, crash)
    assert world.run(60, until=lambda: len(world.canaries_s) == 2)
    world.way = well
    assert world.run(60, until=lambda: len(world.canaries_s) == 3)
    world.run(CANARY_PROVES_S)
    assert (world.pool.breaker.is_open, world.states().count(State.READY)) == (True, 1)
    world.run(1.5)
    assert (world.pool.breaker.is_open, world.states()) == (False, [State.READY] * 4)


def test_one_slot_that_always_crashes_does_not_stop_the_others() -> None:
    world = World(3, lambda slot: CRASH if slot == 1 else WELL)
    assert world.run(100, until=lambda: world.pool.breaker.is_open)
    before = len(world.starts_s)
    assert not world.run(3600, until=lambda: not world.pool.breaker.is_open), "healthy workers must not close it"
    assert [world.pool.slots[number].restarts for number in (0, 2)] == [0, 0]
    assert 50 < len(world.starts_s) - before < 70


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("after_s", [0.02, 5])
def test_the_breaker_closes_after_its_canary_is_removed(scaled: bool, after_s: float) -> None:
    world = World(1, crash)
    assert world.run(100, until=lambda: world.pool.breaker.is_open)
    world.way = well
    assert world.run(40, until=lambda: world.pool.breaker.canary is not None)
    world.run(after_s)
    world.pool.scale(0) if scaled else world.pool.drain(0, world.now_s + LIMITS.drain_s)
    assert world.run(1, until=lambda: world.pool.breaker.canary is None)
    world.pool.scale(2)
    world.run(150)
    assert (world.pool.breaker.is_open, set(world.states())) == (False, {State.READY})


def test_scaling_to_zero_and_back_starts_slots_that_the_breaker_delayed() -> None:
    world = World(2, crash)
    assert world.run(20, until=lambda: world.pool.breaker.is_open)
    world.pool.scale(0)
    assert world.run(10, until=lambda: world.states() == [State.EMPTY] * 2), "a canary crashes"
    assert world.pool.breaker.is_open
    world.way = well
    world.pool.scale(2)
    assert world.run(100, until=lambda: world.states() == [State.READY] * 2)


def bad_ones(good: int) -> Callable[[int], Way]:
    """Between `good` messages, one that kills a busy worker and then three more in isolation."""
    lives: dict[int, Iterator[int]] = defaultdict(lambda: itertools.cycle((good, 0, 0, 0)))
    return lambda slot: Way(0.2, done=next(lives[slot]))


def test_rare_poison_messages_do_not_open_the_breaker() -> None:
    # One in a hundred. Its four crashes come in a row, so each slot only waits for its first backoffs.
    world = World(4, bad_ones(99))
    world.run(60)
    assert not world.pool.breaker.is_open
    cycle_s = 4 * 0.2 + 0.1 + 0.2 + 0.4
    assert len(world.starts_s) >= 4 * 4 * 60 / (cycle_s * 1.25)


def bad_ones_by_chance(chance: random.Random) -> Iterator[int]:
    """One in a hundred, at random: several may be in one batch, and each kills three workers in isolation."""
    while True:
        yield 99
        yield from [0] * 3 * sum(chance.random() < 0.01 for _ in range(100))


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_many_poison_messages_in_one_worker_do_not_open_the_breaker(workers: int) -> None:
    lives = [bad_ones_by_chance(random.Random(slot)) for slot in range(workers)]
    world = World(workers, lambda slot: Way(0.2, done=next(lives[slot])))
    assert not world.run(300, until=lambda: world.pool.breaker.is_open)
    assert most_within(world.crashes_s, WINDOW_S) > 30 * workers


def test_the_breaker_opens_if_many_messages_kill() -> None:
    world = World(4, bad_ones(9))
    assert world.run(10, until=lambda: world.pool.breaker.is_open)
    before = len(world.starts_s)
    world.run(600)
    assert len(world.starts_s) - before < 25


def test_a_worker_that_completes_messages_before_each_crash_has_no_backoff() -> None:
    world = World(1, lambda _slot: Way(1, done=restart_policy.DONE_PER_CRASH))
    world.run(60)
    assert not world.pool.breaker.is_open
    assert 58 <= len(world.starts_s) <= 60, "started at once, each time"


EVENTS: dict[str, Callable[[Breaker], Breaker]] = {
    "another crashes": lambda breaker: restart_policy.crashed(breaker, 1, 2, 1150.0, 0),
    "a canary": lambda breaker: restart_policy.gone(restart_policy.started(breaker, 1), 1),
    "it leaves": lambda breaker: restart_policy.gone(breaker, 0),
}


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_only_an_uninterrupted_calm_closes_the_breaker(event: Callable[[Breaker], Breaker]) -> None:
    breaker = Breaker(crashed_s=(1000.0,), is_open=True)
    breaker = restart_policy.ready(restart_policy.ready(breaker, 0, 500.0), 0, 500.0 + CALM_S - 1)
    assert not restart_policy.ready(breaker, 0, 500.0 + CALM_S).is_open
    assert restart_policy.ready(event(breaker), 0, 500.0 + CALM_S).is_open


SICK = [CRASH, Way(2), Way(12), Way(40), Way(0.2, ready=False), Way(ready=False)]
WAYS = [WELL, *SICK, Way(0.3, WORKER_TEMPFAIL), Way(5, WORKER_PLANNED)]


class Pools(RuleBasedStateMachine):
    """Children that behave in every way, while the pool is scaled and restarted."""

    @initialize(workers=st.integers(1, 4), seed=st.integers(0, 99))
    def begin(self, workers: int, seed: int) -> None:
        self.ways = dict.fromkeys(range(4), CRASH)
        self.world = World(workers, lambda slot: self.ways[slot], seed)

    @rule(for_s=st.sampled_from([0.2, 1, 5, 10, 30, 65]))
    def run(self, for_s: float) -> None:
        self.world.run(for_s)

    @rule(slots=st.sets(st.integers(0, 3), min_size=1), way=st.sampled_from(WAYS))
    def changes(self, slots: set[int], way: Way) -> None:
        self.ways |= dict.fromkeys(slots, way)

    @rule(workers=st.integers(0, 4))
    def scale(self, workers: int) -> None:
        self.world.pool.scale(workers)

    @rule(number=st.integers(0, 3))
    def restart(self, number: int) -> None:
        if number in self.world.pool.slots:
            self.world.pool.drain(number, self.world.now_s + LIMITS.drain_s)

    @rule()
    def crash_until_it_opens(self) -> None:
        self.ways = dict.fromkeys(range(4), CRASH)
        self.world.run(100, until=lambda: self.world.pool.breaker.is_open)

    @rule(by_s=st.sampled_from([0.01, 1, 20]))
    def restart_a_canary(self, by_s: float) -> None:
        """Restart the canary, if there is one, at some time before it closes the breaker."""
        self.ways = dict.fromkeys(range(4), WELL)
        if self.world.run(100, until=lambda: self.world.pool.breaker.canary is not None):
            self.world.run(by_s)
            self.restart(self.world.pool.breaker.canary or 0)

    @invariant()
    def only_a_living_canary_holds_the_others_back(self) -> None:
        canary = self.world.pool.breaker.canary
        assert canary is None or self.world.pool.slots[canary].living

    def teardown(self) -> None:
        """From any state, a pool whose workers are healthy again gets all of them READY and closes the breaker."""
        if hasattr(self, "world"):
            self.ways = dict.fromkeys(range(4), WELL)
            self.world.run(400)
            wanted = [slot.wanted for slot in self.world.pool.slots.values()]
            assert self.world.states() == [State.READY if yes else State.EMPTY for yes in wanted]
            assert not (self.world.pool.breaker.is_open and any(wanted))


Pools.TestCase.settings = settings(max_examples=40, stateful_step_count=20)
TestPools = Pools.TestCase
