"""Each test that the README names is there, under that name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", (ROOT / "README.md").read_text())))


def test_the_promise_names_tests() -> None:
    assert len(NAMED) > 15


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_the_readme_names_is_there(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
