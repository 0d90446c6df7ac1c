"""The checker itself: it finds every planted error in a history, and nothing else."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tests.delivery.checker import Effect, check, few, quantile, rate_per_s, recovery_ms

MS = 1_000_000
subsets = st.sets(st.integers(0, 60))


@dataclass
class History:
    """A run in which all went well: each message acknowledged and done once, but for the planned."""

    attempts: dict[int, int | None]
    planned: set[int]
    starts: list[Effect]
    ends: list[Effect]
    dead: list[int]

    def judge(self):
        return check(self.attempts, self.starts, self.ends, self.dead, self.planned)

    def done(self) -> list[int]:
        return sorted(effect.n for effect in self.ends)


@st.composite
def histories(draw: st.DrawFn) -> History:
    count = draw(st.integers(1, 50))
    attempts = {n: n * MS for n in range(count)}
    planned = draw(subsets) & set(attempts)
    waits = draw(st.lists(st.integers(0, 500), min_size=count, max_size=count))
    ends = [Effect(n, (n + waits[n]) * MS) for n in attempts if n not in planned]
    starts = [Effect(n, n * MS) for n in attempts]
    return History(dict(attempts), planned, starts, ends, sorted(planned))


def chosen(data: st.DataObject, numbers: list[int]) -> set[int]:
    return data.draw(st.sets(st.sampled_from(numbers))) if numbers else set()


@given(histories())
def test_a_history_without_a_fault_is_valid(history: History) -> None:
    verdict = history.judge()
    assert verdict.valid
    assert not (verdict.duplicated or verdict.repeated or verdict.recovered or verdict.unseen)
    assert verdict.acked == verdict.attempts == verdict.done + verdict.dead == len(history.attempts)


@given(histories(), st.data())
def test_each_loss_is_found_and_no_other(history: History, data: st.DataObject) -> None:
    gone = chosen(data, history.done())
    unseen = chosen(data, sorted(gone))
    history.ends = [effect for effect in history.ends if effect.n not in gone]
    history.starts = [effect for effect in history.starts if effect.n not in unseen]
    verdict = history.judge()
    assert set(verdict.lost) == gone
    assert set(verdict.unseen) == unseen
    assert verdict.valid is not bool(gone)


@given(histories(), st.data())
def test_a_loss_is_no_loss_when_nobody_was_promised_it(history: History, data: st.DataObject) -> None:
    unanswered = chosen(data, sorted(history.attempts))
    done = unanswered & set(history.done())
    gone = chosen(data, sorted(done))
    for n in unanswered:
        history.attempts[n] = None
    history.ends = [effect for effect in history.ends if effect.n not in gone]
    verdict = history.judge()
    assert verdict.valid
    assert set(verdict.recovered) == done - gone


@given(histories(), st.data())
def test_each_duplicate_is_counted(history: History, data: st.DataObject) -> None:
    planted = Counter(data.draw(st.lists(st.sampled_from(history.done())))) if history.ends else Counter()
    again = [Effect(n, 10_000 * MS) for n in planted.elements()]
    history.ends += again
    history.starts += again
    verdict = history.judge()
    assert verdict.valid
    assert verdict.duplicated == verdict.repeated == dict(planted)


@given(histories(), st.data())
def test_a_start_without_an_end_is_no_duplicate_but_repeated(history: History, data: st.DataObject) -> None:
    broken = chosen(data, sorted(history.attempts))
    history.starts += [Effect(n, 0) for n in broken]
    verdict = history.judge()
    assert not verdict.duplicated
    assert set(verdict.repeated) == broken - history.planned


@given(histories(), st.sets(st.integers(100, 200), min_size=1))
def test_what_nobody_published_is_unexpected(history: History, strange: set[int]) -> None:
    history.ends += [Effect(n, 0) for n in strange]
    verdict = history.judge()
    assert set(verdict.unexpected) == strange and not verdict.valid


@given(histories(), st.data())
def test_the_dead_are_exactly_the_planned_ones(history: History, data: st.DataObject) -> None:
    missing = chosen(data, sorted(history.planned))
    innocent = chosen(data, history.done())
    twice = chosen(data, sorted(history.planned - missing))
    history.dead = sorted((history.planned - missing) | innocent) + sorted(twice)
    history.ends = [effect for effect in history.ends if effect.n not in innocent]
    verdict = history.judge()
    assert set(verdict.lost) == missing | innocent, "given up without need is lost"
    assert set(verdict.unexpected) == innocent | twice


@given(histories(), st.data())
def test_a_planned_dead_letter_that_was_done_is_unexpected(history: History, data: st.DataObject) -> None:
    done = chosen(data, sorted(history.planned))
    history.ends += [Effect(n, 0) for n in done]
    assert set(history.judge().unexpected) == done


@given(histories())
def test_waits_are_from_the_acknowledgement_to_the_first_effect(history: History) -> None:
    first = {effect.n: effect.at_ns for effect in history.ends}
    history.ends = [Effect(n, at_ns + MS) for n, at_ns in first.items()] + history.ends
    waits = sorted((at_ns - history.attempts[n]) / MS for n, at_ns in first.items())
    assert list(history.judge().waits_ms) == waits


@given(st.lists(st.floats(0, 1000), min_size=1).map(sorted), st.floats(0, 1))
def test_a_quantile_is_one_of_the_values_and_enough_of_them_are_below(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) * (1 - 1e-9)


@given(st.integers(0, 2000), st.integers(1, 300))
def test_a_stall_is_recovered_from_when_its_last_message_is_done(stall_ms: int, overdue_ms: int) -> None:
    # One message a ms; from 1,000 ms on nothing is done for `stall_ms`, then all at once.
    attempts: dict[int, int | None] = {n: n * MS for n in range(5000)}
    ends = [Effect(n, n * MS if n < 1000 else max(n, 1000 + stall_ms) * MS) for n in attempts]
    found = recovery_ms(attempts, ends, 1000 * MS, overdue_ms)
    assert found == (stall_ms if stall_ms > overdue_ms else 0)


def test_a_later_stall_is_not_the_faults_and_an_endless_one_is_infinite() -> None:
    attempts: dict[int, int | None] = {n: n * MS for n in range(1000)}
    ends = [Effect(n, (n + (400 if n == 900 else 0)) * MS) for n in attempts]
    assert recovery_ms(attempts, ends, 100 * MS, 50) == 0
    assert recovery_ms(attempts, ends, 900 * MS, 50) == 400
    assert recovery_ms(attempts, [effect for effect in ends if effect.n != 90], 100 * MS, 50) == float("inf")
    assert recovery_ms(attempts, [effect for effect in ends if effect.n != 90], 100 * MS, 50, {90}) == 0


def test_rates_and_words() -> None:
    assert rate_per_s([Effect(n, n * MS) for n in range(100)], 0, 100 * MS) == 1000
    assert few(list(range(3))) == "3 (0, 1, 2)"
    assert few(list(range(30)), 2) == "30 (0, 1, ...)"
