"""What is said about a filter of dead letters that fits none."""

import time

import pytest

from supervisor.cli.filter_hint import FilterHint
from supervisor.core.dead_letter import Filter, parse_letter

AN_HOUR_MS = 3_600_000


def test_nothing_is_said_of_an_age_that_was_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """The letter is of the future: the clock of the host that wrote it is ahead."""
    dead_at_ms = int(time.time() * 1000) + AN_HOUR_MS
    letter = parse_letter(b"1-0", "events", "workers", {b"reason": b"timeout", b"dead_at_ms": b"%d" % dead_at_ms})
    for wanted, told in (
        (Filter(text="x"), "no dead letter has 'x' in a field's name or value, its id or its error\n"),
        (Filter(older_than_ms=AN_HOUR_MS), "no dead letter is 1 h 0 m old; the oldest is 0.0 s old\n"),
    ):
        hint = FilterHint(wanted)
        hint.look([letter])
        hint.tell()
        assert capsys.readouterr().err == told
