"""A project's files may have any name: none replaces what the supervisor imports."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest

from tests.support.pool import Pool
from tests.support.waiting import eventually

#: As the `supervisor` command does it: the working directory is not where modules are looked for.
COMMAND = (sys.executable, "-P", "-c", "from supervisor.cli.main import main; main()")
MODULE = (sys.executable, "-m", "supervisor")
NAMES = ["redis", "queue", "uvicorn", "uvloop", "fastapi", "orjson", "psutil", "rich", "structlog", "httptools"]
HANDLERS = """
    import helpers
    from supervisor import Message, handler

    @handler("events", group="g")
    def handle(message: Message) -> None:  # in a thread: its pool needs the standard library's queue
        print(helpers.text(message.fields["n"]), flush=True)
"""


def litter(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / f"{name}.py").write_text(f"raise ImportError('the {name} of the project')\n")
    (folder / "redis.py").unlink()
    (folder / "redis").mkdir()
    (folder / "redis" / "__init__.py").write_text("raise ImportError('the redis of the project')\n")
    (folder / "helpers.py").write_text("def text(n): return f'handled {n}'\n")


@pytest.mark.parametrize(
    ("program", "names"),
    [
        pytest.param(COMMAND, ["supervisor", *NAMES], id="command", marks=pytest.mark.long),
        pytest.param(MODULE, NAMES, id="-m", marks=pytest.mark.long),
    ],
)
def test_a_project_with_files_named_like_ours_runs_as_a_whole(
    tmp_path: Path, redis_url: str, program: Sequence[str], names: Sequence[str]
) -> None:
    folder = tmp_path / "project"
    with Pool(folder, HANDLERS, redis_url=redis_url, workers=1, api=True, program=program) as pool:
        litter(folder, names)
        pool.start()
        answer = httpx.post(
            f"{pool.base_url}/v1/streams/events/messages", json={"fields": {"n": "1"}}, trust_env=False, timeout=30
        )
        assert answer.status_code == 202, answer.text
        eventually(lambda: "handled 1" in pool.output)
        done = pool.command("restart", "--wait")
        assert done.returncode == 0, done.stderr
        assert pool.command("publish", "events", "n=2").returncode == 0
        eventually(lambda: "handled 2" in pool.output)
        assert "of the project" not in pool.output
    for words in (["streams", "--json"], ["config", "check"], ["doctor", "--json"], ["status", "--json"]):
        done = pool.command(*words)
        assert "of the project" not in done.stdout + done.stderr and "Traceback" not in done.stderr, words


def test_a_module_of_the_project_comes_before_what_is_installed(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "config.toml").write_text('handlers = ["pytest"]')
    (folder / "pytest.py").write_text(
        'from supervisor import handler\n@handler("mine", group="g")\ndef f(m: dict) -> None: ...'
    )
    done = subprocess.run(
        [*COMMAND, "config", "check", "--json"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert [found["stream"] for found in json.loads(done.stdout)["handlers"]] == ["mine"]


Start = Callable[..., Pool]


def test_the_service_is_told_by_its_command_line(start_pool: Start, redis_url: str) -> None:
    pool = start_pool(
        HANDLERS.replace("helpers.text", "str").replace("import helpers", ""), redis_url=redis_url, api=True
    )
    pid = next(s["pid"] for s in pool.ask("status")["services"] if s["name"] == "api")
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    assert "api" in words and f"127.0.0.1:{pool.port}" in words and any("supervisor" in word for word in words[:3])
