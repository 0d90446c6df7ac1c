"""The control socket's commands: errors of a client, and bugs of the supervisor."""

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
    return Commands(**parts, restarts=None, status=None, figures=None, stop=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{}, {"n": 1, "m": 2}, {"workers": 1}, {"self": 1, "n": 1}])
def test_unknown_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="scale: wrong arguments"):
        commands(lambda _workers: None).handle("scale", arguments)


def test_a_bug_in_a_command_is_not_a_usage_error() -> None:
    def broken(_workers: int) -> None:
        raise TypeError("our own bug")

    with pytest.raises(TypeError, match="our own bug"):
        commands(broken).handle("scale", {"n": 2})
