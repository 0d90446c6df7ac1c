"""The pinned versions are complete, hashed, and name no place that packages come from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FILES = ("constraints.txt", "constraints-dev.txt", "constraints-peers.txt")


def pins(name: str) -> dict[str, str]:
    """Package -> version; every line that is no comment must be a pin with hashes."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            pin = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)( ; [^-]+?)?( +--hash=sha256:[0-9a-f]{64})+ *", line)
            assert pin, line
            found[canonicalize_name(pin[1])] = pin[2]
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_a_hashed_pin_without_a_place(name: str) -> None:
    assert len(pins(name)) > 20
    assert not re.search(r"://|index-url|find-links|file:", (ROOT / name).read_text())


def test_the_files_agree() -> None:
    runtime, everything, peers = (pins(name) for name in FILES)
    assert {name: everything.get(name) for name in runtime} == runtime
    assert {name: version for name, version in peers.items() if everything.get(name, version) != version} == {}


def test_what_pyproject_asks_for_is_pinned_within_its_range() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    optional = project["optional-dependencies"]
    extras = [text for name in ("test", "lint") for text in optional[name]]
    for file, asked in (
        ("constraints.txt", project["dependencies"] + optional["example"] + settings["build-system"]["requires"]),
        ("constraints-dev.txt", project["dependencies"] + extras),
        ("constraints-bench.txt", optional["bench"]),
        ("constraints-peers.txt", optional["peers"]),
    ):
        pinned = pins(file)
        for requirement in map(Requirement, asked):
            version = pinned.get(canonicalize_name(requirement.name))
            assert version, f"{requirement.name} is not in {file}: run `make constraints`"
            assert requirement.specifier.contains(version), f"{requirement} is {version} in {file}"
