"""What the arbiter reads from a dead worker's fields."""

from hypothesis import given
from hypothesis import strategies as st

from supervisor.shared_consumer import MarksOwner
from supervisor.shared_state import SLOTS_MAX, SharedState, SlotField


def test_last_started_ids_are_unique_and_an_isolated_one_hides_the_others() -> None:
    shared = SharedState()
    slot = shared.slot(0)
    mail, count, _ = [slot.consumer("events", group) for group in ("mail", "count", "idle")]
    assert mail is not None and count is not None
    assert slot.last_started() == []
    mail.set_started(7, 1)
    count.set_started(7, 1)
    assert slot.last_started() == [(7, 1)], "one entry, in two groups"
    count.set_started(9, 0)
    assert slot.last_started() == [(7, 1), (9, 0)]
    mail.set_isolated(8, 2)
    assert slot.last_started() == [(8, 2)], "no other message was running"


def test_an_exit_that_is_no_crash_clears_only_the_marks_of_the_worker_that_left() -> None:
    """A worker that was drained before it had sorted out what its predecessor crashed with takes nothing with it."""
    shared = SharedState()
    slot = shared.slot(0)
    names = ("unread", "suspected", "known", "new")
    rows = {name: slot.consumer("events", name) for name in names}
    for row in rows.values():
        assert row is not None
        row.owner = MarksOwner.WORKER
    rows["new"].owner = MarksOwner.NOBODY  # type: ignore[union-attr]
    slot.reset_for_new_worker()
    for name, owner in (("suspected", MarksOwner.BOTH), ("known", MarksOwner.WORKER)):
        rows[name].owner = owner  # type: ignore[union-attr]
    for row in rows.values():
        row.set_started(7, 1)  # type: ignore[union-attr]
        row.set_isolated(5, 1)  # type: ignore[union-attr]
    slot.set(SlotField.ISOLATING, 1)
    slot.clear_started()
    left = {name: (row.started(), row.isolated()) for name, row in rows.items() if row is not None}
    kept = (7, 1), (5, 1)
    assert left == {"unread": kept, "suspected": ((7, 1), None), "known": ((0, 0), None), "new": kept}
    assert slot.get(SlotField.ISOLATING), "the crash of the predecessor may be charged already"
    slot.reset_for_new_worker()
    for name in names[:-1]:
        rows[name].owner = MarksOwner.WORKER  # type: ignore[union-attr]
    rows["new"].clear()  # type: ignore[union-attr]
    slot.clear_started()
    assert not slot.get(SlotField.ISOLATING) and slot.last_started() == []


def test_a_total_has_the_first_and_the_last_slot_and_no_other_field() -> None:
    shared = SharedState()
    for number, done in ((0, 3), (SLOTS_MAX - 1, 4)):
        shared.slot(number).set(SlotField.DONE, done)
        shared.slot(number).set(SlotField.FAILED, 100)
        shared.slot(number).set(SlotField.DEAD, 100)
    assert shared.total(SlotField.DONE) == 7


_IDS = st.tuples(st.integers(0, 3), st.integers(0, 3))


@given(st.lists(_IDS, min_size=1))
def test_a_raised_mark_is_the_highest_id(ids: list[tuple[int, int]]) -> None:
    row = SharedState().slot(0).consumer("events", "mail")
    assert row is not None
    for number, entry in enumerate(ids, 1):
        row.raise_started(*entry)
        assert row.started() == max(ids[:number])
