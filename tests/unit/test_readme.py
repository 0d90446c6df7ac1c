"""Each test that the README names is there, and the rights that it lists are those that the tests grant."""

import ast
import re
from pathlib import Path

import pytest

from tests.topologies.rights import CLUSTER, COMMANDS, OPTIONAL

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NAMED = sorted(set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", README)))


def test_the_promise_names_tests() -> None:
    assert len(NAMED) > 15


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_the_readme_names_is_there(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_the_rights_are_those_of_the_tests() -> None:
    listed = set(
        re.findall(
            r"(?<=[\s`])\+[a-z]+(?:\|[a-z]+)?(?=[\s`])", README.partition("## Which Redis")[2].partition("\n## ")[0]
        )
    )
    assert listed == {*COMMANDS.split(), *OPTIONAL.split(), *CLUSTER.split()}
