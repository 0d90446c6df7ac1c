"""Handlers under mypy --strict and pyright: what the pool refuses at the start is refused, and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.errors import HandlerError
from supervisor.handling.loader import load_handlers
from supervisor.settings.model import Settings

ROOT = Path(__file__).parents[2]
EXAMPLES = Path(__file__).parent / "handler_examples"
ACCEPTED, REFUSED = EXAMPLES / "accepted.py", EXAMPLES / "refused.py"
PRELUDE, *CASES = REFUSED.read_text().split("# case\n")


def refused_lines() -> set[int]:
    lines = REFUSED.read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# refused")}


def check(errors: list[tuple[str, int]], output: str) -> None:
    """Check that each refused line has an error, and no other one has; that of a class is at its next line, too."""
    refused, found = refused_lines(), {line for name, line in errors if name == REFUSED.name}
    assert refused <= found <= refused | {line + 1 for line in refused}, output
    assert {name for name, _ in errors} == {REFUSED.name}, output


def test_mypy_refuses_what_the_start_refuses() -> None:
    cache = ROOT / ".mypy_cache" / "examples"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    done = subprocess.run(
        [*command, f"--cache-dir={cache}", "--no-error-summary", str(ACCEPTED), str(REFUSED)],
        env={**os.environ, "MYPYPATH": str(ROOT)}, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.findall(r"^.*?(\w+\.py):(\d+): error: ", done.stdout, re.MULTILINE)
    check([(name, int(line)) for name, line in found], done.stdout + done.stderr)


def test_pyright_refuses_what_the_start_refuses(tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    for file in (ACCEPTED, REFUSED):
        shutil.copy(file, tmp_path)
    config = tmp_path / "pyrightconfig.json"
    config.write_text(json.dumps({"extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(config)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)["generalDiagnostics"]
    check([(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found], done.stdout)


def load(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"example_{abs(hash(folder))}"
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    load_handlers(Settings(handlers=[name]), folder)


def test_the_start_takes_the_accepted_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path, ACCEPTED.read_text(), monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_the_start_refuses_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    with pytest.raises(HandlerError, match=r"example_\d+\.py:\d+: "):
        load(tmp_path, PRELUDE + case, monkeypatch)
