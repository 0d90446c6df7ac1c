"""Where settings come from, and which source wins."""

import json
import socket
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import ConfigError
from supervisor.settings.load import Loaded, load
from supervisor.settings.model import Settings
from supervisor.settings.section import Section
from supervisor.settings.sources import leaves
from tests.unit.written_config import written

SHIPPED = Path(__file__).parents[2] / "config.toml"


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


def test_state_dir_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    path = written(tmp_path / "project", 'state_dir = "state"\n')
    monkeypatch.chdir(tmp_path)
    assert load(Path("project/config.toml"), environ={}).settings.state_dir == tmp_path / "project" / "state"
    assert load(path.parent, environ={}).path == path
    assert load(path, environ={}).root == path.parent
    alone = load(environ={})
    assert (alone.path, alone.root, alone.settings.state_dir) == (None, tmp_path, tmp_path / ".supervisor")


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
