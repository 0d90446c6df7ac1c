"""Commands in odd surroundings: closed or full standard streams, poor locales, no folder, no locks, other users."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.control import exit_report
from supervisor.errors import EXIT_DEGRADED, EXIT_DOWN, EXIT_FAILED, EXIT_OK, EXIT_USAGE
from supervisor.keys import dead_key
from supervisor.settings.paths import paths_in
from tests.cli.run import COMMAND, environment, run, spawn
from tests.support.letters import add_dead_letter
from tests.support.pool import Pool
from tests.support.servers import AnyServer
from tests.support.standins import HANDLERS, Standins
from tests.support.waiting import eventually


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    return tmp_path


def shell(words: str, redirections: str, cwd: Path, redis_url: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$@" {words} {redirections}', "sh", *COMMAND]
    return subprocess.run(
        command, cwd=cwd, env=environment(redis_url) | env, capture_output=True, text=True, timeout=60, check=False
    )


def test_closed_streams_are_no_error_of_a_command(project: Path, redis_server: AnyServer) -> None:
    cases = {"status": EXIT_DOWN, "config show": EXIT_OK, "read events": EXIT_OK, "start --config x": EXIT_USAGE}
    for words, code in cases.items():
        closed = shell(words, "<&- >&-", project, redis_server.url)
        assert "Traceback" not in closed.stderr and "Exception" not in closed.stderr
        assert closed.returncode == code, (words, closed.stderr)
    for words, code in {"publish events n=1": EXIT_OK, "status --json": EXIT_DOWN, "publish -x": EXIT_USAGE}.items():
        assert shell(words, "<&- >&- 2>&-", project, redis_server.url).returncode == code, words
    with redis_server.sync() as redis:
        assert redis.xlen("events") == 1


def test_a_full_disk_behind_stdout_is_named(project: Path, redis_server: AnyServer) -> None:
    for words in ("status --json", "streams", "--help"):
        done = shell(words, ">/dev/full", project, redis_server.url)
        assert (done.returncode, done.stderr) == (
            EXIT_FAILED,
            "error: stdout can't be written: No space left on device\n",
        ), words


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("publish new --json -", (2_000, 2, 2)),
        ("dead drop events mail --yes --json", (0, 0, 2)),
        ("later cancel events a b", (0, 2, 0)),
    ],
)
def test_a_reader_that_leaves_ends_no_change_half_way(
    project: Path, redis_server: AnyServer, words: str, left: tuple[int, int, int]
) -> None:
    later = "supervisor:{events}:later"
    with redis_server.sync() as redis:
        for number in range(2):
            add_dead_letter(redis, "events", "mail", {"n": number})
            redis.zadd(later, {json.dumps({"id": "ab"[number], "fields": {"n": "1"}}): 9e12})
        with spawn(*words.split(), cwd=project, redis_url=redis_server.url) as process:
            assert process.stdout is not None
            process.stdout.close()
            process.stdout = None
            told = process.communicate(b'{"n": 1}\n' * 2_000)[1].decode()
        assert process.returncode == 0 and "rror" not in told, told
        assert (redis.xlen("new"), redis.xlen(dead_key("events", "mail")), redis.zcard(later)) == left


def test_a_full_disk_behind_stdout_leaves_an_honest_count(project: Path, redis_server: AnyServer) -> None:
    (project / "lines").write_text('{"n": 1}\n' * 2_000)
    done = shell("publish events --json lines", ">/dev/full", project, redis_server.url)
    assert done.returncode == EXIT_FAILED
    assert done.stderr == "error: stdout can't be written: No space left on device\n500 messages were stored\n"
    with redis_server.sync() as redis:
        assert redis.xlen("events") == 500


def test_a_stderr_that_takes_nothing_changes_no_outcome(project: Path, redis_server: AnyServer) -> None:
    for words, code in (("status", EXIT_DOWN), ("publish events n=1 --json -", EXIT_USAGE)):
        assert shell(words, "2>/dev/full", project, redis_server.url).returncode == code, words


@pytest.mark.parametrize("encoding", ["ascii", "koi8-r"])
def test_what_stdout_cannot_encode_is_escaped(project: Path, redis_server: AnyServer, encoding: str) -> None:
    text = "é → 😀"
    with redis_server.sync() as redis:
        redis.xadd("events", {"text": text})
    env = {"PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run(
        [*COMMAND, "read", "events", "--json"],
        cwd=project, env=environment(redis_server.url) | env, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout.decode("ascii"))["fields"]["text"] == text
    done = subprocess.run(
        [*COMMAND, "read", "events"],
        cwd=project, env=environment(redis_server.url) | env, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_working_folder_that_was_deleted(tmp_path: Path, redis_server: AnyServer) -> None:
    for words in ("status", "start", "doctor", "init"):
        gone = tmp_path / "gone"
        gone.mkdir()
        command = ["sh", "-c", 'rmdir "$0"; exec "$@"', str(gone), *COMMAND, *words.split()]
        done = subprocess.run(
            command, cwd=gone, env=environment(redis_server.url), capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr and done.returncode in (EXIT_FAILED, EXIT_USAGE), (words, done.stderr)
        assert "working" in done.stderr + done.stdout, (words, done.stderr)


def refuse(folder: Path, **calls: str) -> dict[str, str]:
    """Return an environment in which Python's functions `module_name` fail with an error number."""
    folder.mkdir()
    lines = ["import errno, fcntl, os", "def refuse(number):", "    def call(*args, **options):"]
    lines += ["        raise OSError(number, os.strerror(number))", "    return call"]
    lines += [f"{name.replace('__', '.')} = refuse(errno.{number})" for name, number in calls.items()]
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("calls", [{"fcntl__flock": "ENOLCK"}, {"fcntl__lockf": "ENOSYS"}], ids=["flock", "lockf"])
def test_a_file_system_without_locks_is_named(tmp_path: Path, project: Path, redis_url: str, calls: Any) -> None:
    env = refuse(tmp_path / "site", **calls)
    done = run("start", "--no-api", cwd=project, redis_url=redis_url, env=env)
    assert done.returncode == EXIT_USAGE and "Traceback" not in done.stderr
    assert "has no locks" in done.stderr and "set state_dir" in done.stderr


def test_a_sandbox_without_memfd_runs_a_pool(tmp_path: Path, redis_url: str, start_pool: Callable[..., Pool]) -> None:
    env = refuse(tmp_path / "site", os__memfd_create="EPERM")
    pool = start_pool(HANDLERS, redis_url=redis_url, workers=1, env=env)
    assert pool.command("restart", "--wait").returncode == EXIT_OK
    assert pool.status()["workers"][0]["incarnation"] == 2


@pytest.fixture
def full_disk(tmp_path: Path) -> Any:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k,nr_inodes=3", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    (folder / "filler").write_bytes(bytes(4096))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_below_the_state_is_named(project: Path, full_disk: Path, redis_url: str) -> None:
    env = {"SUPERVISOR_STATE_DIR": str(full_disk / "state")}
    done = run("start", "--no-api", cwd=project, redis_url=redis_url, env=env)
    assert done.returncode == EXIT_USAGE and "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr and "make room" in done.stderr


def test_a_pool_reports_its_end_on_a_full_disk(full_disk: Path) -> None:
    paths = paths_in(full_disk)
    exit_report.reserve(paths)
    with pytest.raises(OSError, match="No space left"):
        (full_disk / "filler").write_bytes(bytes(8192))
    exit_report.write(paths, 7, "work left")
    report = exit_report.read(paths, os.getpid(), 0)
    assert report is not None and (report.exit_code, report.reason) == (7, "work left")


@pytest.mark.long
def test_a_pool_whose_process_is_stopped_is_named(tmp_path: Path) -> None:
    with Standins(tmp_path, workers=1) as pool:
        pool.start()
        os.kill(pool.pid, signal.SIGSTOP)
        try:
            done = [run(*words, "--config", str(pool.config), cwd=tmp_path) for words in (["status"], ["scale", "2"])]
        finally:
            os.kill(pool.pid, signal.SIGCONT)
        assert [one.returncode for one in done] == [EXIT_DEGRADED, EXIT_FAILED], "a pool runs here"
        for text in (one.stdout + one.stderr for one in done):
            assert f"its process {pool.pid} is stopped" in text and f"kill -CONT {pool.pid}" in text
            assert "supervisor start" not in text
        later = "the pool may have done it, or do it later"
        assert [later in one.stderr for one in done] == [False, True]
        eventually(lambda: len(pool.status()["workers"]) == 2)


ASK = """
import os, sys
from supervisor.cli.main import run
for module in ("cli.status", "cli.pool_commands", "control.client", "control.discovery", "status", "settings.sources"):
    __import__(f"supervisor.{module}")
import encodings.idna, difflib, pwd, psutil, shlex, socket, tomllib
run(["status", "--config", sys.argv[-1]])
run(["config", "check", "--config", sys.argv[-1]])
print("=====", flush=True), print("=====", file=sys.stderr, flush=True)
os.setresuid(65534, 65534, 65534)
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_is_not_told_that_the_pool_is_down() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, Standins(Path(folder), workers=1) as pool:
        os.chmod(folder, 0o755)
        pool.start()
        for words in (["status", "--json"], ["scale", "2"], ["stop"]):
            code, out, err = ask_as_nobody(pool, *words)
            assert (code, out) == (EXIT_FAILED, ""), err
            assert "belongs to root" in err and "sudo -u root" in err and "down" not in err, words
        # Where the way to the socket is open, the arbiter itself refuses.
        pool.paths.state_dir.chmod(0o755)
        pool.paths.control.chmod(0o666)
        code, _, err = ask_as_nobody(pool, "status")
        assert code == EXIT_FAILED and "belongs to another user" in err
        assert pool.stop() == EXIT_OK


def ask_as_nobody(pool: Standins, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, *words, "--config", str(pool.config)],
        cwd="/", env=environment(""), capture_output=True, text=True, check=False,
    )  # fmt: skip
    out, err = (text.partition("=====\n")[2] for text in (done.stdout, done.stderr))
    return done.returncode, out, err


def test_a_slot_that_cannot_be_locked_is_named(start_pool: Callable[..., Pool], redis_url: str) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_url, workers=1)
    (pool.paths.slots / "1.lock").mkdir()
    pool.ask("scale", n=2)
    [line, *_] = eventually(lambda: pool.events("worker can't start"))
    assert line["slot"] == 1 and "state_dir" in line["error"] and "Is a directory" in line["error"]
    (pool.paths.slots / "1.lock").rmdir()
    assert len(pool.wait_ready()["workers"]) == 2
    assert "Traceback" not in pool.output
