"""What the arbiter reads from a dead worker's words."""

from __future__ import annotations

from supervisor.shared_state import SharedState


def test_what_was_started_last_is_told_once_and_what_ran_alone_alone() -> None:
    shared = SharedState()
    slot = shared.slot(0)
    rows = [slot.consumer("events", group) for group in ("mail", "count", "idle")]
    mail, count, _ = rows
    assert mail is not None and count is not None
    assert slot.last_started() == []
    mail.set_started(7, 1)
    count.set_started(7, 1)
    assert slot.last_started() == [(7, 1)], "one entry, in two groups"
    count.set_started(9, 0)
    assert slot.last_started() == [(7, 1), (9, 0)]
    mail.set_isolated(8, 2)
    assert slot.last_started() == [(8, 2)], "nothing else was in hand"
