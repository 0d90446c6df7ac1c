"""The examples of these pages of docs/ are a project, whose tests pass."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Loads the project as a pool does, and makes each middleware go around something.
LOAD = """
from pathlib import Path
from supervisor.handling.loader import load_handlers
from supervisor.settings.load import load
loaded = load(Path("config.toml"), environ={})
print(len(load_handlers(loaded.settings, loaded.root, loaded.origins)))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("middleware.md", "testing.md", "tracing.md", "emit.md", "later.md", "outbox.md", "limits.md"):
        for file, text in FILE.findall((ROOT / "docs" / name).read_text()):
            path = tmp_path / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    (tmp_path / "handlers" / "__init__.py").touch()
    (tmp_path / "config.toml").write_text('middleware = ["handlers.middleware:timing", "handlers.sizes:sizes"]\n')
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\npythonpath = .\n"
    )
    return tmp_path


def run(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_load_with_their_middleware(project: Path) -> None:
    assert run(project, "-c", LOAD).strip() == "12"


def test_the_tests_of_the_examples_pass(project: Path) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:valkey", "-p", "no:xdist"]
    assert "14 passed" in run(project, *words)
