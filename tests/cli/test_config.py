"""`config`, `doctor` and `init`."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.cli.run import COMMAND, data, environment, run, run_on_terminal, spawn
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
HANDLERS = """\
from supervisor import handler

@handler("events:x", group="g")
def handle(fields: dict[str, str]) -> None: ...
"""


PLAIN, DATABASE = pytest.param([], id="plain"), pytest.param(["--database"], id="database")
WITH_AND_WITHOUT_DATABASE = pytest.mark.parametrize("options", [PLAIN, DATABASE])


def test_show_tells_where_each_value_came_from(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[pool]\nworkers = 3\n[stream."events:x"]\ntimeout_s = 2\n[api]\ntoken = "t0p"\n'
    )
    env = {"SUPERVISOR_POOL__NAME": "blue", "REDIS_URL": "redis://user:hunter2@host"}
    rows = {
        row["key"]: (row["value"], row["origin"])
        for row in data(run("config", "show", "--json", cwd=tmp_path, env=env))
    }
    config = tmp_path / "config.toml"
    assert rows["pool.workers"] == (3, f"{config}:2")
    assert rows["pool.name"] == ("blue", "environment SUPERVISOR_POOL__NAME")
    assert rows["pool.drain_s"] == (25.0, "default")
    assert rows['stream."events:x".timeout_s'] == (2.0, f"{config}:4")
    assert rows["redis.url"] == ("redis://user:***@host", "environment REDIS_URL")
    assert rows["api.token"] == ("***", f"{config}:6")
    table = run("config", "show", cwd=tmp_path, env=env).stdout
    assert "t0p" not in table and "hunter2" not in table
    assert [line.split() for line in table.splitlines() if line.startswith("pool.workers ")] == [
        ["pool.workers", "3", f"{config}:2"]
    ]
    narrow = run_on_terminal("config", "show", "--config", str(config), cwd=tmp_path).splitlines()
    assert any(line.split() == ["pool.workers", "3", "config.toml:2"] for line in narrow)
    assert any(line.startswith("consumer.claim_foreign_after_s  ") for line in narrow), "a key is never cut"


def test_check_names_the_handlers(tmp_path: Path) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    found = data(run("config", "check", "--json", cwd=tmp_path))
    assert found == {"config": None, "handlers": [{"stream": "events:x", "group": "g", "handler": "handlers.handle"}]}


def test_check_ends_what_a_module_starts_at_its_import(tmp_path: Path) -> None:
    # The manager's process keeps all descriptors of the one that it was forked from.
    code = "import multiprocessing\nmanager = multiprocessing.get_context('fork').Manager()\n"
    code += "open('pid', 'w').write(str(manager._process.pid))\n"
    (tmp_path / "handlers.py").write_text(code + HANDLERS)
    done = run("config", "check", cwd=tmp_path)
    assert "events:x" in done.stdout + done.stderr, done.stderr
    eventually(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())), what="the manager has left")


def test_check_tells_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    (tmp_path / "handlers.py").write_text("1 / 0\n")
    (tmp_path / "config.toml").write_text("[api]\nbind = '0.0.0.0:8000'\n[outbox]\nurl = 'oracle://x'\n")
    done = run("config", "check", cwd=tmp_path, redis_url="redis://x?wrong=1")
    assert (done.returncode, done.stdout) == (2, "")
    for part in ("redis.url", "api.bind = '0.0.0.0:8000'", "outbox.url", "handlers.py:1: ZeroDivisionError"):
        assert part in done.stderr, part


UNREAD = """\
[stream."events:y"]
timeout_s = 1
[stream."events:x".group.h]
timeout_s = 1
[stream."events:x".group.g]
timeout_s = 1
"""


def test_overrides_that_no_handler_reads_are_told_wherever_one_looks(
    tmp_path: Path, start_pool, redis_url: str
) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_url, workers=1, config=UNREAD)
    path = f"{tmp_path}/project0/config.toml"
    wrong = [
        f"{path}:2: [stream.\"events:y\"]: no handler reads it, did you mean 'events:x'?",
        f'{path}:4: [stream."events:x".group.h]: no handler is in it',
    ]
    warned = [line for line in map(json.loads, pool.lines) if line["level"] == "warning"]
    assert [line["where"] for line in warned] == wrong
    done = pool.command("config", "check")
    assert done.returncode == 0 and done.stderr.splitlines()[:-1] == [f"warning: {line}" for line in wrong]
    assert done.stderr.endswith(": valid, 1 handler\n")
    assert findings(tmp_path / "project0", redis_url)[1]["warn"][:2] == wrong


def test_doctor_tells_of_files_that_can_not_be_imported_by_their_name(tmp_path: Path) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    (tmp_path / "queue.py").touch()
    assert f"{tmp_path}/queue: `import queue` means the standard library's" in findings(tmp_path)[1]["warn"]


def findings(folder: Path, redis_url: str = "") -> tuple[int, dict[str, list[str]]]:
    done = run("doctor", "--json", cwd=folder, redis_url=redis_url)
    found: dict[str, list[str]] = {"ok": [], "warn": [], "fail": []}
    for finding in data(done):
        found[finding["level"]].append(finding["text"])
        assert finding["level"] == "ok" or finding["remedy"]
    return done.returncode, found


def test_doctor_finds_a_healthy_set_up(tmp_path: Path, durable_server) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    code, found = findings(tmp_path, durable_server.url)
    assert (code, found["fail"], found["warn"]) == (0, [], [])
    assert any("durability always" in text for text in found["ok"])
    assert any("events:x / g: the group is created at the first start" in text for text in found["ok"])


def test_doctor_finds_what_is_wrong_with_redis(tmp_path: Path, redis_server) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    with redis_server.sync() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", "100mb")
        client.xadd("events:x", {"a": "1"}, id="1-1")
        client.xgroup_create("events:x", "g", "0")
    code, found = findings(tmp_path, redis_server.url)
    assert code == 1
    assert ["maxmemory-policy" in text for text in found["fail"]] == [True]
    assert any("durability none" in text for text in found["warn"])
    assert any("events:x / g: lag 1, pending 0, dead 0, the oldest has waited for" in text for text in found["warn"])


def test_doctor_goes_on_where_redis_refuses_a_check(tmp_path: Path, redis_server) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    with redis_server.sync() as client:
        client.set("events:x", "no stream")
    code, found = findings(tmp_path, redis_server.url)
    assert code == 1
    assert ["WRONGTYPE" in text for text in found["fail"]] == [True]
    assert any("maxmemory-policy" in text for text in found["ok"])


def test_doctor_finds_what_is_wrong_with_the_project(tmp_path: Path) -> None:
    (tmp_path / "handlers.py").write_text("1 / 0\n")
    (tmp_path / "config.toml").write_text('state_dir = "handlers.py/state"\n')
    code, found = findings(tmp_path, "redis://127.0.0.1:1")
    assert code == 1
    for part in ("ZeroDivisionError", "handlers.py/state can't be written", "127.0.0.1:1 can't be reached"):
        assert any(part in text for text in found["fail"]), part


def test_doctor_says_so_when_the_configuration_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[pool]\nworker = 3\n")
    code, found = findings(tmp_path)
    assert code == 1
    assert "did you mean 'workers'" in found["fail"][0]


def test_doctor_finds_what_a_start_would_refuse(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    (tmp_path / "config.toml").write_text(
        '[outbox]\nurl = "mysql://localhost/shop"\n[api]\nbind = "0.0.0.0:8000"\nrouters = ["gone"]\n'
    )
    checked = run("config", "check", cwd=tmp_path, redis_url=redis_url)
    assert checked.returncode == 2
    done = run("doctor", cwd=tmp_path, redis_url=redis_url)
    assert done.returncode == 1
    for error in checked.stderr.removeprefix("error: ").splitlines():
        assert re.search(rf"\[fail\] (routers: )?{re.escape(error)}\n", done.stdout), done.stdout


def test_a_burst_without_workers_is_refused(tmp_path: Path) -> None:
    done = run("start", "--burst", "--workers", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: flag --workers: pool.workers = 0: must be at least 1 with --burst\n"


def test_init_writes_a_project_once(tmp_path: Path) -> None:
    done = run("init", "new", cwd=tmp_path)
    assert done.returncode == 0
    made = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert set(done.stdout.split()) == made
    assert {
        "new/config.toml",
        "new/handlers/users.py",
        "new/handlers/http.py",
        "new/handlers/middleware.py",
        "new/handlers/resources.py",
        "new/tests/test_handlers.py",
        "new/pyproject.toml",
        "new/Dockerfile",
        "new/.dockerignore",
        "new/.env.example",
        "new/.gitignore",
    } <= made
    assert data(run("config", "check", "--json", cwd=tmp_path / "new"))["handlers"][0]["group"] == "welcome"
    readme = (tmp_path / "new" / "README.md").read_text()
    steps = [line.strip() for line in done.stderr.splitlines() if line.startswith("  ")]
    for step in (
        "supervisor start",
        "supervisor status",
        "supervisor restart",
        "python -m pip install -e '.[dev]'",
        "python -m pytest",
    ):
        assert step in readme and any(line.startswith(step) for line in steps), step


@WITH_AND_WITHOUT_DATABASE
def test_the_readme_of_a_new_project_has_a_row_for_each_file(tmp_path: Path, options: list[str]) -> None:
    made = [
        Path(name).relative_to("new").as_posix() for name in run("init", "new", *options, cwd=tmp_path).stdout.split()
    ]
    rows = re.findall(r"^\| `(\S+)` \|", (tmp_path / "new" / "README.md").read_text(), re.MULTILINE)
    plain = {"README.md", ".gitignore", ".dockerignore", "handlers/__init__.py", "tests/conftest.py"}
    assert sorted(rows) == sorted(set(made) - plain)


@pytest.mark.parametrize("options", [pytest.param([], id="plain", marks=pytest.mark.long), DATABASE])
def test_the_route_of_a_new_project_publishes(tmp_path: Path, redis_url: str, options: list[str]) -> None:
    assert run("init", "new", *options, cwd=tmp_path).returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "{}:{}".format(*free.getsockname())
    [posted] = re.findall(r"-d '(.*)' localhost:8000/users", (tmp_path / "new" / "README.md").read_text())
    assert ("user_id" in json.loads(posted)) is not bool(options), "the database numbers the users"
    request = urllib.request.Request(f"http://{address}/users", posted.encode(), {"Content-Type": "application/json"})
    with spawn("start", "--bind", address, cwd=tmp_path / "new", redis_url=redis_url) as process:
        try:
            assert process.stdout is not None

            def answer() -> dict[str, str]:
                with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(request, timeout=30) as found:
                    return {"status": found.status, **json.load(found)}
                return {}

            assert eventually(answer, 60, what="the service answers")["status"] == (201 if options else 202)
            assert f"welcome, {json.loads(posted)['email']}" in process.stdout.readline().decode()
        finally:
            process.terminate()
            process.communicate()


def test_init_prints_what_it_wrote_as_json(tmp_path: Path) -> None:
    done = run("init", "new", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = data(done)
    assert found == {
        "folder": "new",
        "files": run("init", "other", cwd=tmp_path).stdout.replace("other", "new").split(),
    }
    refused = run("init", "new", "--json", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "") and "these files exist" in refused.stderr


def test_the_next_step_of_init_can_be_pasted(tmp_path: Path) -> None:
    done = run("init", "my project", cwd=tmp_path)
    assert done.stderr.splitlines().count("  cd 'my project'") == 2
    assert "  cd " not in run("init", cwd=tmp_path).stderr
    assert run("init", "--", "-x", cwd=tmp_path).stderr.splitlines().count("  cd ./-x") == 2


def test_a_project_with_a_database_is_installed_before_its_start(tmp_path: Path) -> None:
    steps = run("init", "shop", "--database", cwd=tmp_path).stderr.split()
    assert steps.index("install") < steps.index("start")


def test_what_init_prints_as_json_is_text_for_any_folder(tmp_path: Path) -> None:
    for locale in ("C", "C.UTF-8"):
        name = b"\xff" + locale.encode()
        env = environment("") | {"LC_ALL": locale}
        words = [*COMMAND, "init", name, "--json"]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, check=False)
        assert (done.returncode, json.loads(done.stdout)["folder"]) == (0, "\\xff" + locale), done.stderr


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("# mine\n")
    done = run("init", cwd=tmp_path)
    assert done.returncode == 2
    assert "config.toml" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
    assert (tmp_path / "config.toml").read_text() == "# mine\n"


@pytest.mark.parametrize("options", [PLAIN, pytest.param(["--database"], id="database", marks=pytest.mark.long)])
def test_the_tests_of_a_new_project_pass(tmp_path: Path, options: list[str]) -> None:
    assert run("init", "new", *options, cwd=tmp_path).returncode == 0
    words = [
        sys.executable,
        "-c",
        "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:anyio', '-p', 'no:valkey']))",
    ]
    done = subprocess.run(words, cwd=tmp_path / "new", env=environment(""), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{4 if options else 3} passed" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        pytest.param(["mypy", "--strict", "--follow-imports=silent", "--cache-dir={cache}"], marks=pytest.mark.long),
    ],
    ids=["ruff check", "ruff format", "mypy"],
)
@WITH_AND_WITHOUT_DATABASE
def test_a_new_project_passes_its_linters(tmp_path: Path, words: list[str], options: list[str]) -> None:
    assert run("init", "new", *options, cwd=tmp_path).returncode == 0
    cache = ROOT / ".mypy_cache" / f"new_project_{len(options)}"
    installed = tmp_path / "installed"  # the supervisor alone: this repository has a handlers/ and tests/ of its own
    installed.mkdir()
    (installed / "supervisor").symlink_to(ROOT / "supervisor")
    command = [sys.executable, "-m", *(word.format(cache=cache) for word in words)]
    done = subprocess.run(
        command,
        cwd=tmp_path / "new",
        env={**environment(""), "MYPYPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("redis://h:1?foo=1", "no option 'foo'"), ("rediss://h:1?ssl_ca_cert=ca.pem", "no option 'ssl_ca_cert'"),
        ("rediss://h:1?ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs: the file can't be read"),
        ("rediss://h:1?ssl_cert_reqs=maybe", "maybe"), ("redis+sentinel://h/m?sentinel_user=x", "'sentinel_user'"),
        ("redis://h:port", "redis.url"),
    ],
)  # fmt: skip
def test_check_finds_what_start_would_say_of_the_url(tmp_path: Path, url: str, part: str) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    done = run("config", "check", cwd=tmp_path, redis_url=url)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "redis.url" in done.stderr and part in done.stderr
    assert ": valid, " not in done.stderr


@pytest.mark.parametrize("line", ["claim_foreign_after_s = 1e300", "max_age = 1e300", 'max_age = "999999999999d"'])
def test_a_time_that_redis_can_not_take_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    (tmp_path / "config.toml").write_text(f"[consumer]\n{line}\n")
    done = run("config", "check", cwd=tmp_path)
    assert done.returncode == 2 and f"config.toml:2: consumer.{line.split(maxsplit=1)[0]}" in done.stderr, done.stderr
