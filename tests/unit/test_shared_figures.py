"""What a worker counts for its handlers, and how the counts of all slots are added up."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from supervisor.shared_figures import FIGURE_ROWS, PROCESS_BOUNDS_S, WAIT_BOUNDS_S, FigureField, HandlerFigures
from supervisor.shared_state import SharedState, SlotField, consumer_key

NOW_S = 1_764_000_000.0
BUCKETS = len(WAIT_BOUNDS_S) + 1


@dataclass
class Delivered:
    entry: bytes


def figures(shared: SharedState, slot: int = 0, group: str = "mail") -> HandlerFigures:
    found = shared.slot(slot).figures("events", group)
    assert found is not None
    shared.slot(slot).set(SlotField.SPAWN_NS, 1)
    return found


def row(shared: SharedState, group: str = "mail") -> list[int]:
    key = consumer_key("events", group)
    return shared.figures({key})[key]


def waited(waits_ms: Sequence[int]) -> list[Delivered]:
    """Messages whose ids are as old as these times, in the order of ids."""
    return [Delivered(f"{int(NOW_S * 1000) - ms}-{n}".encode()) for n, ms in enumerate(sorted(waits_ms, reverse=True))]


def expected(waits_ms: Sequence[int]) -> list[int]:
    bounds_ms = [bound * 1000 for bound in WAIT_BOUNDS_S]
    return [
        sum(low < ms <= high for ms in waits_ms)
        for low, high in zip([-1.0, *bounds_ms], [*bounds_ms, float("inf")], strict=True)
    ]


@given(st.lists(st.integers(0, 10_000_000), min_size=1, max_size=50))
def test_waits_are_counted_as_if_each_had_been_looked_at(waits_ms: list[int]) -> None:
    shared = SharedState()
    figures(shared).waited(waited(waits_ms), NOW_S)
    found = row(shared)
    assert found[FigureField.WAIT_BUCKETS : FigureField.WAIT_BUCKETS + BUCKETS] == expected(waits_ms)
    assert min(waits_ms) * len(waits_ms) <= found[FigureField.WAIT_MS] <= max(waits_ms) * len(waits_ms)


def test_an_id_of_the_future_has_not_waited() -> None:
    shared = SharedState()
    counted = figures(shared)
    counted.waited([Delivered(b"18446744073709551615-1")], NOW_S)
    counted.waited([], NOW_S)
    found = row(shared)
    assert found[FigureField.WAIT_MS] == 0
    assert found[FigureField.WAIT_BUCKETS] == 1


def test_calls_are_counted_up_to_their_bound() -> None:
    shared = SharedState()
    counted = figures(shared)
    counted.ran_quickly(0, 0.0)
    counted.ran_quickly(1000, 0.002)
    for process_s in (0.005, 0.0051, 10.0, 11.0):
        counted.ran(process_s)
    found = row(shared)
    buckets = found[FigureField.PROCESS_BUCKETS : FigureField.PROCESS_BUCKETS + len(PROCESS_BOUNDS_S) + 1]
    assert buckets == [1001, 1, *[0] * 11, 1, 1]
    assert found[FigureField.PROCESS_US] == 2000 + 21_010_100


def test_the_rows_of_all_slots_are_added_up_and_outlive_their_workers() -> None:
    shared = SharedState()
    for slot in (0, 3, 255):
        figures(shared, slot).add(FigureField.SETTLED_DONE, slot + 1)
        figures(shared, slot, "count").add(FigureField.SETTLED_DEAD, 7)
        shared.slot(slot).reset_for_new_worker()
    assert row(shared)[FigureField.SETTLED_DONE] == 1 + 4 + 256
    assert row(shared)[FigureField.SETTLED_DEAD] == 0
    assert row(shared, "count")[FigureField.SETTLED_DEAD] == 21
    assert shared.figures({consumer_key("events", "other")}) == {}


def test_the_row_of_a_handler_that_no_longer_exists_is_empty_for_the_next() -> None:
    shared = SharedState()
    slot = shared.slot(0)
    for number in range(FIGURE_ROWS):
        figures(shared, group=str(number)).add(FigureField.SETTLED_DONE)
    assert slot.figures("events", "one too many") is None
    slot.keep_consumers([("events", str(number)) for number in range(1, FIGURE_ROWS)])
    assert figures(shared, group="new").get(FigureField.SETTLED_DONE) == 0
    assert row(shared, "1")[FigureField.SETTLED_DONE] == 1


def test_garbage_in_the_memory_raises_nothing() -> None:
    shared = SharedState()
    for slot in range(2):
        counted = figures(shared, slot)
        for field in list(FigureField)[1:]:
            counted.add(field, 2**64 - 1)
        counted.add(FigureField.SETTLED_DONE, 5)
        assert counted.get(FigureField.SETTLED_DONE) == 4
    assert len(row(shared)) == len(row(shared, "mail"))
