"""What is said of wrong settings."""

import re
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import ConfigError, HandlerError
from supervisor.handling.registry import handler
from supervisor.settings.load import load, load_anyway
from supervisor.settings.model import Settings
from supervisor.settings.section import Section, Table
from tests.unit.written_config import refused, written


def test_an_app_variable_below_a_plain_value_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "[app]\nretries = 3\n")
    [line] = refused(path, environ={"SUPERVISOR_APP__RETRIES__MAX": "5"})
    assert line == (
        'environment SUPERVISOR_APP__RETRIES__MAX: app.retries.max = "5": must be left out, since app.retries is not a'
        " table"
    )


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
handler = ["a"]
[pool]
workers = "8"

[api]
bind = "nowhere"
[stream."events:user_created"]
max_delivery = 3
[stream."events:user_created".group."b"]
timeout_s = -1
""",
    )
    head, *lines = refused(path, {"pool.drain_s": 0}, {"SUPERVISOR_LOG__LEVEL": "inf", "SUPERVISOR_WORKERS": "3"})
    assert head == "8 errors in the configuration:"
    found = "\n".join(lines)
    for expected in (
        f"{path}:1: handler: unknown key, did you mean 'handlers'?",
        f'{path}:3: pool.workers = "8": must be a whole number',
        "flag pool.drain_s: pool.drain_s = 0: must be more than 0",
        f'{path}:6: api.bind = "nowhere": must be host:port',
        f"{path}:8: stream.\"events:user_created\".max_delivery: unknown key, did you mean 'max_deliveries'?",
        f'{path}:10: stream."events:user_created".group.b.timeout_s = -1: must be more than 0',
        'environment SUPERVISOR_LOG__LEVEL: log.level = "inf": must be',
        "did you mean 'info'?",
        "environment SUPERVISOR_WORKERS: there is no such setting, did you mean 'SUPERVISOR_POOL__WORKERS'?",
    ):
        assert expected in found
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[stream.s]\nclaim_foreign_after_s = 60\n", "it belongs to [consumer]"),
        ("workers = 2\n", "it belongs to [pool]"),
        ("[consumer]\nmax_deliveries = 2\n", "it belongs to [retry]"),
    ],
)
def test_a_key_in_the_wrong_table_is_told_its_own(tmp_path: Path, text: str, words: str) -> None:
    (line,) = refused(written(tmp_path, text))
    assert f"unknown key, {words}" in line


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SUPERVISOR_POOL__WORKER", "SUPERVISOR_POOL__WORKERS"),
        ("SUPERVISOR_REDIS_URL", "SUPERVISOR_REDIS__URL"),
        ("SUPERVISOR_BIND", "SUPERVISOR_API__BIND"),
        ("SUPERVISOR_HANDLER", "SUPERVISOR_HANDLERS"),
    ],
)
def test_a_mistyped_variable_is_refused(tmp_path: Path, name: str, meant: str) -> None:
    (line,) = refused(written(tmp_path, ""), environ={name: "1"})
    assert line.startswith(f"environment {name}: there is no such setting, did you mean {meant!r}?")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = \n", 1),
        ("[pool]\nworkers = 3\nworkers = 4\n", 3),
        ('[pool]\n\nname = "x\n', 3),
        ("[pool\n", 1),
        ("[app]\nx = " + 5000 * "1" + "\n", 3),
        ("[app]\nx = " + 5000 * "[" + "\n", 3),
    ],
    ids=["no value", "twice", "open text", "open table", "a number of many digits", "deep"],
)
def test_bad_toml_names_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = written(tmp_path, text)
    told = refused(path)[0]
    assert told.startswith(f"{path}:{line}: not valid TOML: ") and "sys." not in told


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "other.toml")[0].startswith(f"{tmp_path / 'other.toml'}: there is no such file")


def test_a_table_where_a_value_belongs_and_the_other_way(tmp_path: Path) -> None:
    lines = refused(written(tmp_path, "pool = 3\n[redis.url]\nhost = 1\n"))
    assert any("pool = 3: must be a table, [pool]" in line for line in lines)
    assert any("redis.url" in line and "must be redis://..., rediss://" in line for line in lines)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("redis.url", "localhost:6379"),
        ("api.bind", "127.0.0.1:65536"),
        ("api.bind", "127.0.0.1:0"),
        ("api.bind", "8000"),
        ("pool.host", "a:b"),
        ("pool.host", ""),
        ("pool.workers", True),
        ("pool.workers", 257),
        ("pool.drain_s", float("inf")),
        ("consumer.start", "now"),
        ("consumer.start", "99999999999999999999-0"),
    ],
)
def test_values_out_of_range(key: str, value: Any, tmp_path: Path) -> None:
    (line,) = refused(written(tmp_path, ""), {key: value})
    assert f"{key} = " in line and "must be" in line


def test_errors_keep_secrets(tmp_path: Path) -> None:
    text = '[redis]\nurl = "http://user:hunter2@host"\n[api]\ntoken = 4711\n'
    found = "\n".join(refused(written(tmp_path, text)))
    assert "redis.url" in found and "api.token" in found
    assert "hunter2" not in found and "4711" not in found


@pytest.mark.parametrize("key", ["state_dir", "api.token_file"])
def test_a_path_that_leads_nowhere_is_refused_with_its_line(tmp_path: Path, key: str) -> None:
    for value in ("~no-such-user/x", "a\\u0000b"):
        path = written(tmp_path, f'{key} = "{value}"\n')
        assert refused(path)[0].startswith(f"{path}:1: {key} = "), value
        found, errors = load_anyway(path, {})
        assert found.settings.state_dir == tmp_path / ".supervisor" and len(errors) == 1, value
    named = refused(None, environ={"SUPERVISOR_CONFIG": "~no-such-user/x"})[0]
    assert named == "environment SUPERVISOR_CONFIG: ~no-such-user/x: there is no such user"


def test_a_section_made_in_a_program_is_checked_too() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(pool={"workers": 300, "wokers": 1}, redis=3, stream={"s": {"timeout_s": 0}})
    assert str(caught.value).splitlines() == [
        "redis = 3: must be a table, [redis]",
        "pool.wokers = 1: unknown key",
        "pool.workers = 300: must be between 0 and 256",
        "stream.s.timeout_s = 0: must be more than 0",
    ]


def every_key(section: type[Section] = Settings, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of each setting that is not a table."""
    found = []
    for name, (kind, _) in section.declared.items():
        if type(kind) is Table:
            found += every_key(kind.section, (*above, name))
        elif name not in ("stream", "schedule", "app"):
            found.append((*above, name))
    return found


@pytest.mark.parametrize(
    "value", ["[1]", "{}", "-1", "99999999999", "''", "'a b:{'", "true", "1.5", "nan", "1979-05-27"]
)
def test_what_is_wrong_is_said_in_plain_words_and_all_at_once(value: str, tmp_path: Path) -> None:
    keys = every_key()
    assert len(keys) > 35
    text = "".join(f"{'.'.join(key)} = {value}\n" for key in keys if key[0] != "state_dir")
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text), environ={})
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) > 10, "all are reported at once"
    for line in lines:
        allowed = line.rpartition(": must be ")[2]
        assert allowed and ": must be " in line, line
        assert not re.search(r"Input|String should|valid|pattern|match|pydantic|instance", line.partition(" = ")[2]), (
            line
        )


def test_the_options_of_a_handler_are_refused_in_plain_words_and_all_at_once() -> None:
    with pytest.raises(HandlerError) as caught:
        handler("s", group="g", timeout_s=-1, batch_size="many", start="now", concurency=1)  # type: ignore[arg-type, call-arg]
    lines = str(caught.value).splitlines()
    told = [line.partition(": ")[2] for line in lines]
    assert "unknown option 'concurency', did you mean 'concurrency'?" in told[3]
    assert told[:3] == [
        "option timeout_s = -1: must be more than 0",
        "option batch_size = 'many': must be a whole number between 1 and 10,000",
        'option start = \'now\': must be an entry id such as "0" or "1700000000000-0", or "$" for new entries only',
    ]
