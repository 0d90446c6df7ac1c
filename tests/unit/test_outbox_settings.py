"""The URL of the outbox, and how its rows keep values."""

import sys
from pathlib import Path

import pytest

from supervisor import ConfigError
from supervisor.outbox.check import check_outbox
from supervisor.outbox.rows import row_fields, row_text
from supervisor.settings.load import load
from supervisor.settings.model import Settings


def test_values_that_are_no_text_come_back_as_they_were() -> None:
    fields = {"text": "ä\x00", "raw": b"\xff\x00"}
    assert row_fields(row_text(fields)) == fields
    unreadable = ("[]", "{}", '{"n": 1}', '{"n": {"base64": "?"}}', "no json", "[" * 100_000)
    for wrong in (*unreadable, '{"n": "\\ud800"}', '{"\\ud800": "n"}', '{"": "n"}'):
        with pytest.raises(ValueError):
            row_fields(wrong)


class TestSettings:
    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("mysql://db/shop", "outbox.url: a database of postgresql or sqlite is needed, not mysql"),
            ("sqlite+nothing:///shop.db", "outbox.url: "),
            ("oracle+oracledb://db/shop", "outbox.url: a database of postgresql or sqlite is needed, not oracle"),
        ],
    )
    def test_a_url_that_can_not_be_used_is_refused_at_the_start(self, url: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            check_outbox(Settings(outbox={"url": url}))

    def test_a_driver_of_the_extra_that_is_missing_is_told_how_to_install(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "aiosqlite", None)
        with pytest.raises(ConfigError, match=r"aiosqlite.*: pip install 'redis-streams-supervisor\[sqlalchemy\]'$"):
            check_outbox(Settings(outbox={"url": "sqlite+aiosqlite:///shop.db"}))

    def test_a_relative_file_is_in_the_folder_of_the_configuration(self, tmp_path: Path) -> None:
        config = tmp_path / "config.toml"
        config.write_text('outbox.url = "sqlite+aiosqlite:///data/shop.db"\n')
        assert load(config, environ={}).settings.outbox.url == f"sqlite+aiosqlite:///{tmp_path}/data/shop.db"
        for url in ("sqlite:////var/shop.db", "postgresql+psycopg://app@db/shop"):
            config.write_text(f'outbox.url = "{url}"\n')
            assert load(config, environ={}).settings.outbox.url == url
