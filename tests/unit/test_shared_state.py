"""What the arbiter reads from a dead worker's fields."""

from __future__ import annotations

from supervisor.shared_state import SharedState


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
