"""Which token gives which role, tokens in files that change, and what is refused as too weak."""

import os
from pathlib import Path
from typing import Any

import pytest

from api import access
from api.access import LOCAL, OPERATOR, READER, Access
from supervisor.errors import ConfigError
from supervisor.http_bind import check_bind
from supervisor.settings.load import load
from supervisor.settings.model import Settings

TOKEN, READ = "operator-of-16-chars", "reader-of-16-characters"


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.told.append((event, fields))

    warning = info


def bearer(token: str) -> bytes:
    return f"Bearer {token}".encode()


def test_each_token_has_its_role() -> None:
    both = Access(Settings(api={"token": TOKEN, "read_token": READ}), Log())
    assert (both.role(bearer(TOKEN)), both.role(bearer(READ))) == (OPERATOR, READER)
    for wrong in (
        b"",
        b"Bearer",
        b"Bearer ",
        bearer(TOKEN + "x"),
        bearer(TOKEN)[:-1],
        b"Basic " + TOKEN.encode(),
        b"\xff",
    ):
        assert both.role(wrong) is None
    assert both.needs_token
    none = Access(Settings(), Log())
    assert (none.needs_token, none.role(b"")) == (False, LOCAL)


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_LOOK_S", 0.0)
    file, log = tmp_path / "token", Log()
    file.write_text(f"{TOKEN}\n")
    found = Access(Settings(api={"token_file": str(file), "read_token": READ}), log)
    assert found.role(bearer(TOKEN)) == OPERATOR
    fresh = tmp_path / "fresh"
    fresh.write_text("another-operator-token")
    fresh.replace(file)
    assert found.role(bearer(TOKEN)) is None
    assert found.role(bearer("another-operator-token")) == OPERATOR
    assert log.told == [("tokens read again", {"files": [str(file)]})]
    # What can't be used changes nothing.
    for content in ("", "two\nlines", READ, "\x00" * 20):
        file.write_text(content)
        assert found.role(bearer("another-operator-token")) == OPERATOR
    os.unlink(file)
    assert found.role(bearer(READ)) == READER
    assert [event for event, _ in log.told[1:]] == ["tokens not read again"] * 5
    assert "it must hold one token" in log.told[1][1]["error"] and "No such file" in log.told[-1][1]["error"]


def test_paths_of_tokens_are_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[api]\ntoken_file = "secrets/token"\n')
    assert load(tmp_path / "config.toml", environ={}).settings.api.token_file == str(tmp_path / "secrets" / "token")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"token": TOKEN, "token_file": "t"}, "api.token_file = 't': must be empty, since token is set"),
        ({"read_token": READ}, "api.read_token = .* without token or token_file"),
        ({"read_token_file": "t"}, "without token or token_file"),
    ],
)
def test_contradictions_are_refused(values: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Settings(api=values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "anybody who reaches that address"),
        ({"token": "short"}, "api.token: it has 5 characters; .* at least 16"),
        ({"token": TOKEN, "read_token": "short"}, "api.read_token: it has 5 characters"),
        ({"token": TOKEN, "read_token": TOKEN}, "api.read_token: it must differ from api.token"),
        ({"token_file": "/no/such/file"}, "api.token_file = '/no/such/file': No such file"),
    ],
)
def test_an_open_address_needs_tokens_that_nobody_guesses(values: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_bind(Settings(api={"bind": "0.0.0.0:8000", **values}))


def test_a_short_token_is_enough_on_loopback_and_a_long_one_everywhere(tmp_path: Path) -> None:
    check_bind(Settings(api={"token": "short"}))
    file = tmp_path / "token"
    file.write_text(TOKEN)
    check_bind(Settings(api={"bind": "0.0.0.0:8000", "token_file": str(file), "read_token": READ}))
