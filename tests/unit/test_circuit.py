"""The circuit breaker of a handler: when it opens, what it lets through, and that it closes again."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.circuit import (
    CLOSES_ABOVE,
    FAILURES_MIN,
    OPENS_AFTER_S,
    PROBE_BASE_S,
    PROBE_MAX_S,
    WINDOW_S,
    Circuit,
    CircuitState,
)

#: (seconds since the last look, succeeded, failed)
LOOKS = st.lists(st.tuples(st.floats(0, 60), st.integers(0, 50), st.integers(0, 50)), max_size=60)
LONGEST_S = PROBE_MAX_S * 1.2


def middle() -> float:
    return 0.5


def opened(now_s: float = 0.0) -> Circuit:
    circuit = Circuit(now_s - OPENS_AFTER_S, middle)
    circuit.observe(now_s - OPENS_AFTER_S, 0, FAILURES_MIN)
    assert circuit.state is CircuitState.CLOSED
    circuit.observe(now_s, 0, FAILURES_MIN)
    assert circuit.state is CircuitState.OPEN
    return circuit


def after(looks: list[tuple[float, int, int]]) -> tuple[Circuit, float]:
    circuit, now_s = Circuit(0.0, middle), 0.0
    for passed_s, succeeded, failed in looks:
        now_s += passed_s
        circuit.observe(now_s, succeeded, failed)
    return circuit, now_s


def test_a_few_failures_or_a_share_of_them_open_nothing() -> None:
    circuit = Circuit(0.0, middle)
    circuit.observe(0.0, 0, FAILURES_MIN - 1)
    assert circuit.limit(0.0) == inf
    for second in range(100):
        circuit.observe(second, 2, 18)
        assert circuit.limit(second) == inf, "one in ten succeeds"


def test_many_bad_messages_at_once_open_nothing() -> None:
    circuit = Circuit(0.0, middle)
    for moment in range(10):
        circuit.observe(moment * OPENS_AFTER_S / 10, 0, 1000)
    assert circuit.state is CircuitState.CLOSED
    circuit.observe(1000.0, 0, 1000)
    assert circuit.state is CircuitState.CLOSED, "what was long ago does not count"


def test_failures_of_long_ago_do_not_count() -> None:
    circuit = Circuit(0.0, middle)
    for turn in range(50):
        circuit.observe(turn * WINDOW_S, 0, FAILURES_MIN // 2 - 1)
        assert circuit.state is CircuitState.CLOSED


def test_an_outage_opens_it_although_much_went_well_before() -> None:
    circuit = Circuit(0.0, middle)
    circuit.observe(0.0, 100_000, 0)
    for turn in range(1, 22):
        circuit.observe(turn, 0, FAILURES_MIN)
    assert circuit.state is CircuitState.OPEN


def test_probes_come_ever_more_seldom_and_close_it_step_by_step() -> None:
    circuit, now_s, waits = opened(), 0.0, []
    for _ in range(8):
        assert circuit.limit(now_s) == 0
        waits.append(circuit.probe_s - now_s)
        now_s = circuit.probe_s
        assert circuit.limit(now_s) == 1
        circuit.observe(now_s, 0, 1)
    assert waits == [PROBE_BASE_S * 2**turn for turn in range(4)] + [PROBE_MAX_S] * 4
    now_s, limits = circuit.probe_s, []
    while circuit.state is not CircuitState.CLOSED:
        limits.append(circuit.limit(now_s))
        circuit.observe(now_s, int(limits[-1]), 0)
    assert limits == [1, 2, 4, 8, 16, 32] and limits[-1] == CLOSES_ABOVE


def test_what_was_started_before_it_opened_is_no_probe() -> None:
    circuit = opened()
    circuit.observe(0.1, 50, 0)
    assert circuit.state is CircuitState.OPEN


def test_a_failed_probe_of_a_half_open_circuit_opens_it_again() -> None:
    circuit = opened()
    circuit.observe(circuit.probe_s, 1, 0)
    assert circuit.state is CircuitState.HALF_OPEN
    circuit.observe(2.0, 0, 2)
    assert circuit.state is CircuitState.OPEN and circuit.opened_s == 0.0


@given(LOOKS)
def test_it_never_holds_everything_back_for_longer_than_a_probe_takes(looks: list[tuple[float, int, int]]) -> None:
    circuit, now_s = after(looks)
    assert circuit.limit(now_s) >= 0
    assert circuit.limit(now_s + LONGEST_S) >= 1


@given(LOOKS)
def test_it_closes_when_everything_succeeds_again(looks: list[tuple[float, int, int]]) -> None:
    circuit, now_s = after(looks)
    for _ in range(10):
        if circuit.state is CircuitState.CLOSED:
            break
        now_s += LONGEST_S if circuit.state is CircuitState.OPEN else 0.0
        circuit.observe(now_s, int(circuit.limit(now_s)), 0)
    assert circuit.state is CircuitState.CLOSED


@given(LOOKS.map(lambda looks: [(s, ok, 0) for s, ok, _ in looks]))
def test_it_never_opens_without_failures(looks: list[tuple[float, int, int]]) -> None:
    assert after(looks)[0].state is CircuitState.CLOSED


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=200))
def test_while_everything_fails_few_attempts_are_used_up(passed: list[float]) -> None:
    circuit, now_s, probes = opened(), 0.0, 0
    for passed_s in passed:
        now_s += passed_s
        if circuit.limit(now_s):
            probes += 1
            circuit.observe(now_s, 0, 1)
    assert probes <= 5 + now_s / PROBE_MAX_S
