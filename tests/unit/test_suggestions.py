"""What is suggested for a mistyped word."""

import pytest

from supervisor.text import did_you_mean


@pytest.mark.parametrize(
    ("word", "allowed", "meant"),
    [
        ("events:user", ["events:users", "orders"], "events:users"),
        ("events:X", ["events:y", "events:x"], "events:x"),
        ("TIMEOUT", ["ValueError", "timeout"], "timeout"),
    ],
)
def test_the_nearest_word_is_suggested_whatever_its_case(word: str, allowed: list[str], meant: str) -> None:
    assert did_you_mean(word, allowed) == f", did you mean {meant!r}?"


def test_nothing_is_suggested_that_is_not_near() -> None:
    assert did_you_mean("orders", ["events:users"]) == did_you_mean("orders", []) == ""
