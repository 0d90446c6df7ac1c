"""The control socket's commands: what is wrong with a request, and what is wrong with us."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.arbiter.commands import Commands
from supervisor.errors import UsageError


def commands(scale: Any) -> Commands:
    """Commands of a pool that can only be scaled."""
    parts: dict[str, Any] = {
        "workers": SimpleNamespace(size=1, scale=scale),
        "services": {"keeper": object()},
        "shutdown": SimpleNamespace(begun=False),
        "log": SimpleNamespace(info=lambda *_words, **_more: None),
    }
    return Commands(**parts, restarts=None, status=None, stop=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{}, {"n": 1, "m": 2}, {"workers": 1}, {"self": 1, "n": 1}])
def test_arguments_that_a_command_does_not_take_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="scale: wrong arguments"):
        commands(lambda _workers: None).handle("scale", arguments)


def test_a_bug_in_a_command_is_not_blamed_on_the_client() -> None:
    def broken(_workers: int) -> None:
        raise TypeError("a bug of ours")

    with pytest.raises(TypeError, match="a bug of ours"):
        commands(broken).handle("scale", {"n": 2})
