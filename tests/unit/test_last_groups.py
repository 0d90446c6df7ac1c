"""The file with the groups of the last pool: what is written is read, and what is damaged counts as nothing."""

from pathlib import Path

import pytest

from supervisor.control import last_groups
from supervisor.settings.model import Settings
from supervisor.settings.paths import PoolPaths, pool_paths


@pytest.fixture
def paths(tmp_path: Path) -> PoolPaths:
    return pool_paths(Settings(state_dir=tmp_path))


def test_written_groups_are_read(paths: PoolPaths) -> None:
    pairs = [("events", "a"), ("Bestellungen:größer", "b")]
    last_groups.write(paths, pairs)
    assert last_groups.read(paths) == pairs
    last_groups.write(paths, pairs[:1])
    assert last_groups.read(paths) == pairs[:1]


@pytest.mark.parametrize("text", ["", "{", "7", "null", '[["events"]]', "\udcff"])
def test_a_damaged_file_counts_as_no_groups(paths: PoolPaths, text: str) -> None:
    paths.last_groups.write_bytes(text.encode(errors="surrogateescape"))
    assert last_groups.read(paths) == []


def test_a_file_that_cannot_be_written_stops_nothing(paths: PoolPaths) -> None:
    paths.last_groups.with_suffix(".new").mkdir()
    last_groups.write(paths, [("events", "a")])
    assert last_groups.read(paths) == []
