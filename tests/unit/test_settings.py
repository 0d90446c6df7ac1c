"""Where settings come from, which source wins, and what is said of wrong ones."""

import json
import re
import socket
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import ConfigError, HandlerError
from supervisor.handling.registry import handler
from supervisor.settings.load import Loaded, load, load_anyway
from supervisor.settings.model import Settings
from supervisor.settings.section import Section, Table
from supervisor.settings.sources import leaves

SHIPPED = Path(__file__).parents[2] / "config.toml"


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(path: Path | None, flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, flags or {}, environ or {})
    return str(caught.value).splitlines()


def all_keys() -> dict[tuple[str, ...], Any]:
    return {path: value for path, value in leaves(Settings().as_dict()) if path[0] not in ("app", "schedule", "stream")}


def test_the_shipped_file_holds_every_key_with_its_default() -> None:
    text = SHIPPED.read_text()
    shipped = dict(leaves(tomllib.loads(text)))
    assert shipped.pop(("api", "routers")) == ["handlers.http:router"]  # the example's
    expected = all_keys()
    assert expected.pop(("api", "routers")) == []
    del expected[("pool", "host")]  # differs from machine to machine, so it is shown commented out
    assert "\n# host = " in text
    assert shipped == expected


def test_each_key_of_the_shipped_file_has_a_comment() -> None:
    lines = SHIPPED.read_text().splitlines()
    bare = [line for above, line in pairwise(lines) if " = " in line and not above.startswith("#")]
    assert bare == []


def test_the_shipped_file_is_loaded_as_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = load(SHIPPED, environ={}).settings
    monkeypatch.chdir(tmp_path)
    defaults = load(environ={}).settings
    for settings in (shipped, defaults):
        assert settings.state_dir.name == ".supervisor"
    differing = {path for path, value in leaves(shipped.as_dict()) if dict(leaves(defaults.as_dict()))[path] != value}
    assert differing == {("state_dir",), ("api", "routers")}
    assert shipped.pool.host == socket.gethostname()


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    path = written(tmp_path, "[pool]\nworkers = 3\n")
    environ = {"SUPERVISOR_POOL__WORKERS": "4"}
    seen = [
        load(written(tmp_path, ""), environ={}),
        load(written(tmp_path, "[pool]\nworkers = 3\n"), environ={}),
        load(path, environ=environ),
        load(path, {"pool.workers": 5}, environ),
    ]
    assert [loaded.settings.pool.workers for loaded in seen] == [8, 3, 4, 5]
    assert [loaded.origins["pool.workers"] for loaded in seen] == [
        "default",
        f"{path}:2",
        "environment SUPERVISOR_POOL__WORKERS",
        "flag --workers",
    ]


def test_a_flag_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    assert load(written(tmp_path, "[pool]\nworkers = 3\n"), {"pool.workers": None}, {}).settings.pool.workers == 3


def test_every_key_has_an_origin_with_its_line(tmp_path: Path) -> None:
    lines = ["# a comment with = and [brackets]"]
    expected = {}
    path = tmp_path / "config.toml"
    for number, ((*table, key), value) in enumerate(all_keys().items(), 2):
        dotted = ".".join([*table, key])
        lines.append(f"{dotted} = {json.dumps(value)}")
        expected[dotted] = f"{path}:{number}"
    path.write_text("\n".join(lines))
    assert load(path, environ={}).origins == expected


def test_every_setting_has_a_variable(tmp_path: Path) -> None:
    environ = {}
    for path, value in all_keys().items():
        text = value if isinstance(value, str) else json.dumps(value)
        environ["SUPERVISOR_" + "__".join(path).upper()] = text
    loaded = load(written(tmp_path, ""), environ=environ)
    assert set(loaded.origins.values()) == {f"environment {name}" for name in environ}
    assert {**loaded.settings.as_dict(), "state_dir": ".supervisor"} == Settings().as_dict()


@pytest.mark.parametrize("text", ["a,b", " a , b ,", '["a", "b"]'])
def test_lists_from_the_environment(tmp_path: Path, text: str) -> None:
    assert load(written(tmp_path, ""), environ={"SUPERVISOR_HANDLERS": text}).settings.handlers == ["a", "b"]


def test_common_names_are_understood_and_ours_win(tmp_path: Path) -> None:
    path = written(tmp_path, '[redis]\nurl = "redis://file"\n')
    common = {"REDIS_URL": "redis://common"}
    ours = {"SUPERVISOR_REDIS__URL": "redis://ours"}

    def url(environ: dict[str, str]) -> str:
        return load(path, environ=environ).settings.redis.url

    assert url({}) == "redis://file"
    assert url(common) == "redis://common"
    assert url(common | ours) == "redis://ours"
    assert url({"REDIS_URL": ""}) == "redis://file"
    assert load(path, environ=common).origins["redis.url"] == "environment REDIS_URL"


def test_an_app_variable_takes_the_type_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[app]\nlimit = 3\non = false\n")
    environ = {"SUPERVISOR_APP__LIMIT": "5", "SUPERVISOR_APP__ON": "yes", "SUPERVISOR_APP__NEW": "5"}
    assert load(path, environ=environ).settings.app == {"limit": 5, "on": True, "new": "5"}


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


def test_variables_that_others_set_are_left_alone(tmp_path: Path) -> None:
    environ = {
        # supervisord sets these for its children,
        "SUPERVISOR_ENABLED": "1",
        "SUPERVISOR_PROCESS_NAME": "pool",
        "SUPERVISOR_GROUP_NAME": "pool",
        "SUPERVISOR_SERVER_URL": "unix:///run/supervisor.sock",
        # and Kubernetes these, for a Service that is called supervisor-api.
        "SUPERVISOR_API_SERVICE_HOST": "10.0.0.1",
        "SUPERVISOR_API_SERVICE_PORT_HTTP": "80",
        "SUPERVISOR_API_PORT": "tcp://10.0.0.1:80",
        "SUPERVISOR_API_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert set(load(written(tmp_path, ""), environ=environ).origins.values()) == {"default"}


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


def test_state_dir_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    path = written(tmp_path / "project", 'state_dir = "state"\n')
    monkeypatch.chdir(tmp_path)
    assert load(Path("project/config.toml"), environ={}).settings.state_dir == tmp_path / "project" / "state"
    assert load(path.parent, environ={}).path == path
    assert load(path, environ={}).root == path.parent
    alone = load(environ={})
    assert (alone.path, alone.root, alone.settings.state_dir) == (None, tmp_path, tmp_path / ".supervisor")


@pytest.mark.parametrize("key", ["state_dir", "api.token_file"])
def test_a_path_that_leads_nowhere_is_refused_with_its_line(tmp_path: Path, key: str) -> None:
    for value in ("~no-such-user/x", "a\\u0000b"):
        path = written(tmp_path, f'{key} = "{value}"\n')
        assert refused(path)[0].startswith(f"{path}:1: {key} = "), value
        found, errors = load_anyway(path, {})
        assert found.settings.state_dir == tmp_path / ".supervisor" and len(errors) == 1, value
    named = refused(None, environ={"SUPERVISOR_CONFIG": "~no-such-user/x"})[0]
    assert named == "environment SUPERVISOR_CONFIG: ~no-such-user/x: there is no such user"


def test_the_file_of_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "[pool]\nworkers = 3\n")
    monkeypatch.chdir(tmp_path)
    loaded = load(environ={})
    assert isinstance(loaded, Loaded)
    assert (loaded.path, loaded.settings.pool.workers) == (path, 3)


def test_settings_never_change() -> None:
    settings = Settings()
    for section in (settings, *(value for value in vars(settings).values() if isinstance(value, Section))):
        name = next(iter(vars(section)))
        with pytest.raises(AttributeError, match="can't be changed"):
            setattr(section, name, getattr(section, name))


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


def test_the_environment_may_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "project", "[pool]\nworkers = 3\n")
    monkeypatch.chdir(tmp_path)
    for named in (str(path), "project/config.toml", "project"):
        loaded = load(environ={"SUPERVISOR_CONFIG": named})
        assert (loaded.path, loaded.settings.pool.workers) == (path, 3)
    other = written(tmp_path / "other", "[pool]\nworkers = 4\n")
    assert load(other, environ={"SUPERVISOR_CONFIG": str(path)}).settings.pool.workers == 4, "the flag is stronger"
    assert load(environ={"SUPERVISOR_CONFIG": ""}).path is None
    with pytest.raises(ConfigError, match=r"environment SUPERVISOR_CONFIG: nowhere\.toml: there is no such file"):
        load(environ={"SUPERVISOR_CONFIG": "nowhere.toml"})
    with pytest.raises(ConfigError, match="did you mean 'SUPERVISOR_CONFIG'"):
        load(environ={"SUPERVISOR_CONFG": "x"})


def test_links_to_a_release_are_kept_in_the_path_and_resolved_in_what_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        written(tmp_path / "releases" / str(number), f"[pool]\nworkers = {number}\n")
    link = tmp_path / "current"
    link.symlink_to("releases/1")
    monkeypatch.chdir(link)
    # The shell says by which path it came here; a PWD of elsewhere is not believed.
    loaded = load(environ={"PWD": str(link)})
    assert loaded.path == link / "config.toml"
    release = tmp_path / "releases" / "1"
    assert (loaded.root, loaded.settings.state_dir) == (release, release / ".supervisor")
    assert loaded.real_path == release / "config.toml"
    assert load(environ={"PWD": str(tmp_path)}).path == release / "config.toml"
    link.unlink()
    link.symlink_to("releases/2")
    assert loaded.path.exists() and load(loaded.path, environ={}).settings.pool.workers == 2


def test_a_config_file_that_is_a_link_belongs_to_the_folder_of_the_link(tmp_path: Path) -> None:
    there = written(tmp_path / "mounted", "[pool]\nworkers = 3\n")
    (tmp_path / "project").mkdir()
    link = tmp_path / "project" / "config.toml"
    link.symlink_to(there)
    loaded = load(link, environ={})
    assert loaded.root == tmp_path / "project" and loaded.settings.state_dir == tmp_path / "project" / ".supervisor"


def test_a_working_directory_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(ConfigError, match=r"the working directory can't be found .*--config"):
        load(environ={})
    path = written(tmp_path / "project", "")
    assert load(path, environ={}).path == path
