"""Rules that no linter checks: short files and functions, distinct file names, and a complete package list."""

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50
FOLDERS = ("supervisor", "api", "handlers", "tests", "benchmarks")
#: Names that tools look for.
CONVENTIONAL = {"__init__.py", "conftest.py"}


def sources() -> list[Path]:
    """The modules that are held to it; templates are what `supervisor init` writes, not code of ours."""
    found = [path for folder in ("supervisor", "api", "handlers") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "templates" not in path.parts]


def long_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines"


def test_files_are_short() -> None:
    assert len(sources()) > 20
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in sources()}
    assert {path: lines for path, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert [line for path in (*sources(), *tests) for line in long_functions(path)] == []


def test_long_functions_are_seen(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "a.py").write_text("def long():\n" + "    x = 1\n" * FUNCTION_LINES_MAX)
    assert list(long_functions(tmp_path / "a.py")) == ["a.py:1 long: 51 lines"]


def test_no_file_name_occurs_three_times() -> None:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "templates" not in path.parts]
    names = Counter(path.name for path in paths if path.name not in CONVENTIONAL)
    assert {name for name, times in names.items() if times > 2} == set()


def test_annotations_are_strings_only_where_they_must_be() -> None:
    future = "from __future__ import annotations"
    texts = {path: path.read_text() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert [path for path, text in texts.items() if f"\n{future}\n" in text and "if TYPE_CHECKING:" not in text] == []


def test_modules_say_what_they_own() -> None:
    silent = [
        path for path in sources() if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_every_package_is_installed() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for folder in ("supervisor", "api")
        for path in (ROOT / folder).rglob("__init__.py")
        if "templates" not in path.parts
    }
    expected = {f"supervisor_{name}" if name.partition(".")[0] == "api" else name for name in folders}
    assert set(tool["packages"]) == expected
