"""What holds for all commands: help, suggestions, errors and exit codes, output for people and for programs."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from supervisor import compiled
from supervisor.cli.common import Value
from supervisor.cli.main import COMMANDS, cli, main
from supervisor.errors import EXIT_DOWN, UsageError
from tests.cli.run import COMMAND, data, environment, run
from tests.support.servers import AnyServer
from tests.support.standins import HANDLERS

TWO_LEVELS = [[name] for name in COMMANDS] + [["config", "show"], ["config", "check"]]
OF_DEAD = [["dead", name] for name in ("list", "show", "replay", "drop")]


@pytest.mark.parametrize("words", [[], *TWO_LEVELS], ids=" ".join)
def test_help_begins_with_examples(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert text.index("Usage:") < text.index("Examples:") < text.index("Options:")
    assert f"supervisor {' '.join(words)}".strip() in text.partition("Examples:")[2]


@pytest.mark.parametrize("words", [[], *TWO_LEVELS, *OF_DEAD], ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(words: list[str], tmp_path: Path) -> None:
    text = run(*words, "--help", cwd=tmp_path, env={"COLUMNS": "80"}).stdout
    assert text and [line for line in text.splitlines() if len(line) > 80] == []


def test_every_command_has_json_where_it_prints_data() -> None:
    context = click.Context(cli)
    with_json = {
        name
        for name in COMMANDS
        if any("--json" in parameter.opts for parameter in (cli.get_command(context, name) or cli).params)
    }
    data_commands = "status top streams pending explain publish read tail doctor bench init version"
    assert with_json == set(data_commands.split())


def test_bare_command_shows_help(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: supervisor")
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_a_bare_group_shows_its_help_as_the_whole_command_does(tmp_path: Path) -> None:
    context = click.Context(cli)
    groups = [name for name in COMMANDS if isinstance(cli.get_command(context, name), click.Group)]
    assert groups == ["dead", "later", "schedule", "config"]
    for name in groups:
        done = run(name, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), name
        assert done.stdout == run(name, "--help", cwd=tmp_path).stdout


def test_each_command_imports_what_it_uses(tmp_path: Path, redis_server: AnyServer) -> None:
    """Elsewhere commands run in forks of one process that has imported everything; here each has an interpreter."""
    with redis_server.sync() as redis:
        redis.xadd("events", {"n": 1})
        redis.xgroup_create("events", "group", "0")
    (tmp_path / "handlers.py").write_text(HANDLERS)
    env = environment(redis_server.url)
    for words in ("publish events n=2", "read events", "streams", "pending events group", "dead list events group"):
        done = subprocess.run(
            [*COMMAND, *words.split()],
            cwd=tmp_path,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stderr.decode()}"


def test_no_summary_is_cut_on_a_narrow_terminal(tmp_path: Path) -> None:
    for words in (["--help"], ["config", "--help"], ["dead", "--help"]):
        text = run(*words, cwd=tmp_path, env={"COLUMNS": "80"}).stdout.partition("Commands:")[2]
        assert text and "..." not in text
    context = click.Context(cli)
    summaries = {name: getattr(cli.get_command(context, name), "short_help", None) for name in COMMANDS}
    assert [name for name, text in summaries.items() if not text or len(text) > 55] == []


def test_help_is_a_command_too(tmp_path: Path) -> None:
    for words in ([], ["scale"], ["config"], ["config", "show"]):
        assert run("help", *words, cwd=tmp_path).stdout == run(*words, "--help", cwd=tmp_path).stdout
    for words, hint in (
        (["confg"], "did you mean 'config'"),
        (["config", "chek"], "did you mean 'check'"),
        (["scale", "x"], "no subcommands"),
    ):
        done = run("help", *words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "") and hint in done.stderr


def test_version_by_option(tmp_path: Path) -> None:
    assert (
        run("--version", cwd=tmp_path).stdout
        == f"supervisor {data(run('version', '--json', cwd=tmp_path))['supervisor']}\n"
    )


def test_help_and_version_import_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from supervisor.cli.main import run\n"
        "assert run(['--help']) == 0 and run(['start', '--help']) == 0 and run(['version']) == 0\n"
        "heavy = {'redis', 'pydantic', 'rich', 'fastapi', 'uvicorn', 'asyncio', 'structlog'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


#: Where OpenTelemetry's SDK is installed, redis-py imports it, and that imports psutil.
WITH_REDIS = {"psutil"}
HEAVY = {"fastapi", "starlette", "uvicorn", "pydantic", "structlog", "rich", "psutil", "uvloop", "handlers"}


def imported(command: str, cwd: Path, code: int = 0) -> set[str]:
    """The top-level modules that the command imports before it exits with `code`."""
    words = [sys.executable, "-X", "importtime", "-m", "supervisor", *command.split()]
    done = subprocess.run(words, cwd=cwd, env=environment(""), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_commands_import_no_more_than_they_need(start_pool) -> None:
    """Each import costs CPU at every call: FastAPI 400 ms, pydantic's models 100, rich 40."""
    pool = start_pool(HANDLERS, workers=1)
    for command in ("pause", "resume", "scale 1", "--help"):
        found = imported(command, pool.folder)
        assert "supervisor" in found and not found & (HEAVY | {"redis", "asyncio"}), command
    for command in ("publish events n=1", "read events", "read events --json", "status", "status --json", "streams"):
        found = imported(command, pool.folder)
        assert "redis" in found and not found & (HEAVY - WITH_REDIS), command


def test_commands_import_no_more_without_a_pool(tmp_path: Path, redis_server: AnyServer) -> None:
    """The handlers, too, are imported by no command that scripts call often."""
    (tmp_path / "handlers.py").write_text(HANDLERS)
    assert "redis" not in (found := imported("pause", tmp_path, EXIT_DOWN)) and not found & HEAVY
    (tmp_path / "config.toml").write_text(f'[redis]\nurl = "{redis_server.url}"\n')
    for command, code in (("status", EXIT_DOWN), ("publish events n=1", 0), ("read events", 0)):
        found = imported(command, tmp_path, code)
        assert "redis" in found and not found & (HEAVY - WITH_REDIS), command


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["strat"], "did you mean 'start'"),
        (["start", "--worker", "1"], "--workers"),
        (["config", "chek"], "there is no command 'chek', did you mean 'check'?\n`supervisor config --help` shows how"),
        (["dead", "purge"], "there is no command 'purge' (there are: drop, list, replay, show)"),
        (["help", "dead", "purge"], "there is no command 'purge' (there are: drop, list, replay, show)"),
        (["dead", "list", "--older"], "requires an argument\n`supervisor dead list --help` shows how"),
        (["dead", "replay", "a", "b", "--older", ""], "--older '': must be seconds, or a time with its unit"),
        (["dead", "drop", "a", "b", "--older", "-5"], "--older '-5': must be seconds, or a time with its unit"),
        (["stop", "--timeout", "1x"], "between 0 and a century"),
    ],
)
def test_typos_are_answered_with_a_suggestion(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    seen = capsys.readouterr()
    assert (left.value.code, seen.out) == (2, "")
    assert hint in seen.err, seen.err


def test_a_wrong_configuration_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[pool]\nworker = 3\n")
    for words in (["start"], ["api"], ["config", "show"], ["config", "check"], ["read", "s"]):
        done = run(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert f"error: {tmp_path}/config.toml:2: pool.worker: unknown key, did you mean 'workers'?" in done.stderr


def test_an_unreachable_redis_exits_with_3(tmp_path: Path) -> None:
    for words in (["publish", "s", "a=1"], ["read", "s"], ["tail", "s"], ["streams", "s"], ["pending", "s", "g"]):
        done = run(*words, cwd=tmp_path, redis_url="redis://:hunter2@127.0.0.1:1")
        assert (done.returncode, done.stdout) == (3, ""), words
        assert "error: Redis at redis://:***@127.0.0.1:1 can't be reached" in done.stderr
        assert "hunter2" not in done.stderr and "Traceback" not in done.stderr


def test_without_a_url_the_embedded_server_is_explained(tmp_path: Path) -> None:
    done = run("read", "s", cwd=tmp_path)
    assert done.returncode == 3
    assert "embedded server runs only during `supervisor start`" in done.stderr


def test_broken_handlers_exit_with_4(tmp_path: Path) -> None:
    (tmp_path / "handlers.py").write_text("import json\nimport no_such_module\n")
    done = run("config", "check", cwd=tmp_path)
    assert done.returncode == 4
    assert f"error: {tmp_path}/handlers.py:2: ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize(("package", "extra"), [("sqlalchemy", "sqlalchemy"), ("sentry_sdk", "sentry")])
def test_each_command_names_the_extra_that_handlers_lack(
    tmp_path: Path, redis_url: str, package: str, extra: str
) -> None:
    """As a module does that imports a package which is not installed."""
    missing = f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')\n"
    (tmp_path / "handlers.py").write_text(missing)
    for words in ("config check", "start --no-api", "start --burst", "streams", "dead list", "doctor", "explain 1-1"):
        done = run(*words.split(), cwd=tmp_path, redis_url=redis_url)
        assert done.returncode == (1 if words == "doctor" else 4), words
        where = f"{tmp_path}/handlers.py:1: ModuleNotFoundError: No module named '{package}'"
        what = f"pip install 'redis-streams-supervisor[{extra}]'"
        told = done.stdout + done.stderr
        assert where in told and f"{what}\n" in told, told
    (tmp_path / "routes.py").write_text(missing)
    (tmp_path / "config.toml").write_text('[api]\nrouters = ["routes:router"]\n')
    done = run("api", cwd=tmp_path, redis_url=redis_url)
    assert done.returncode == 4 and f"pip install 'redis-streams-supervisor[{extra}]'\n" in done.stderr


def test_a_folder_without_handlers_is_told_what_makes_one(tmp_path: Path) -> None:
    for words in (["config", "check"], ["start", "--no-api"]):
        done = run(*words, cwd=tmp_path)
        assert done.returncode == 4
        assert f"there is no module 'handlers' in {tmp_path}" in done.stderr
        assert done.stderr.endswith("; `supervisor init` makes an example\n")
    (tmp_path / "handlers.py").write_text("x = 1\n")
    done = run("config", "check", cwd=tmp_path)
    assert done.returncode == 4
    assert f"no @handler found in handlers ({tmp_path}/handlers.py); `supervisor init` makes" in done.stderr


def test_without_a_pool_the_control_commands_exit_with_8(tmp_path: Path) -> None:
    for words in (["scale", "3"], ["restart"], ["stop"], ["pause"], ["resume"]):
        done = run(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (8, ""), words
        assert "error: no supervisor answers on" in done.stderr
        assert done.stderr.endswith("\n`supervisor start` starts this folder's pool\n")


@pytest.mark.parametrize("number", ["abc", "-1.5", "257", "1.5", "", "²"])
def test_a_number_of_workers_that_makes_no_sense_is_named(tmp_path: Path, number: str) -> None:
    done = run("scale", number, cwd=tmp_path)
    what = "" if number == "257" else "a whole number "
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: WORKERS {number!r}: must be {what}between 0 and 256\n"


@pytest.mark.parametrize("number", ["+1", "-1", " +1", "+16"])
def test_scale_takes_no_change_for_a_number_of_workers(tmp_path: Path, number: str) -> None:
    done = run("scale", number, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: WORKERS {number!r}: must be the total number of workers, between 0 and 256\n"


def test_an_error_names_an_option_or_argument_by_a_plain_word() -> None:
    found = {}
    for words, one in all_commands().items():
        for parameter in one.params:
            if isinstance(parameter.type, Value):
                with pytest.raises(UsageError) as refused:
                    parameter.type.convert("", parameter, click.Context(one))
                found[f"{words} {parameter.name}"] = str(refused.value)
    assert len(found) > 20
    plain = re.compile(r"(--[a-z]+|[A-Z]{2,}) '': must (be|not be) ")
    assert [text for text in found.items() if not plain.match(text[1])] == []


def test_an_argument_that_is_empty_is_refused(tmp_path: Path) -> None:
    """A variable of the shell that is not set must not mean `all`, nor an entry that nobody can have."""
    for words, one in all_commands().items():
        for parameter in one.params:
            if isinstance(parameter, click.Argument) and words not in ("help", "init"):
                assert isinstance(parameter.type, Value) or parameter.name == "fields", (words, parameter.name)
    for words in (["dead", "list", ""], ["explain", "1-1", ""], ["tail", ""], ["later", "list", "a", ""]):
        done = run(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: STREAM '': must be text that is not empty\n"
    (tmp_path / "config.toml").write_text("")
    for words, name in ((["config", "check", "--config", ""], "--config"), (["init", ""], "DIR")):
        done = run(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {name} '': must not be empty\n")


def test_a_refusal_of_redis_is_told_in_its_words(tmp_path: Path, redis_url: str) -> None:
    assert run("publish", "s", "a=1", cwd=tmp_path, redis_url=redis_url).returncode == 0
    for words in (["read", "key"], ["publish", "key", "a=1"], ["streams", "key"]):
        subprocess_set(redis_url)
        done = run(*words, cwd=tmp_path, redis_url=redis_url)
        assert (done.returncode, done.stdout) == (1, ""), words
        assert "WRONGTYPE" in done.stderr and "Traceback" not in done.stderr


def subprocess_set(url: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        client.set("key", "not a stream")


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, redis_url: str) -> None:
    lines = "\n".join('{"text": "' + "x" * 1000 + '"}' for _ in range(2000))
    assert run("publish", "s", "--json", "-", "-q", cwd=tmp_path, redis_url=redis_url, stdin=lines).returncode == 0
    program = " ".join(COMMAND) + " read s | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", program],
        cwd=tmp_path,
        env=environment(redis_url),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


def test_a_pipe_gets_no_colours_and_no_cut_lines(tmp_path: Path) -> None:
    url = "redis://" + "very-long-host-name." * 15 + "example:6379"
    done = run("config", "show", cwd=tmp_path, redis_url=url, env={"COLUMNS": "40", "FORCE_COLOR": ""})
    assert "\x1b" not in done.stdout
    assert any(url in line and line.endswith("environment REDIS_URL") for line in done.stdout.splitlines())


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_is_no_error(closed: str, tmp_path: Path) -> None:
    for words in ("version", "config show"):
        command = f"{' '.join(COMMAND)} {words} {closed}"
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment(""), capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_supervisord_in_the_same_environment_is_refused(tmp_path: Path) -> None:
    import supervisor

    mixed = tmp_path / "supervisor"
    mixed.mkdir()
    for path in Path(supervisor.__file__).parent.iterdir():
        (mixed / path.name).symlink_to(path)
    (mixed / "supervisord.py").write_text("")
    program = "import sys; from supervisor.cli.main import main; sys.argv = ['supervisor', 'version']; main()"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: supervisord is installed in this environment" in done.stderr


def test_version_names_what_matters(tmp_path: Path) -> None:
    found = data(run("version", "--json", cwd=tmp_path))
    assert set(found) == {"supervisor", "python", "redis-py", "hiredis", "uvloop", "message-path"}
    assert found["message-path"] == compiled.describe()
    assert found["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")


def all_commands() -> dict[str, click.Command]:
    """All commands and those in groups, by what is typed; not the groups."""
    context, found = click.Context(cli), {}
    for name in COMMANDS:
        one = cli.get_command(context, name)
        parts = one.commands.items() if isinstance(one, click.Group) else [("", one)]
        found |= {f"{name} {part}".strip(): command for part, command in parts if command is not None}
    return found


def test_json_is_one_document_or_one_object_per_line() -> None:
    lines = {"top", "tail", "read", "dead list", "dead replay", "dead drop", "later list", "later cancel", "later run"}
    found = {
        words: option.help
        for words, command in all_commands().items()
        for option in command.params
        if "--json" in option.opts and isinstance(option, click.Option) and option.is_flag
    }
    assert {name for name, text in found.items() if "per line" in text} == lines
    assert {text for name, text in found.items() if name not in lines} == {"Print one JSON document."}
