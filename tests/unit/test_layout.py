"""What an arbiter hands to its successor is told apart by its parts, down to the last."""

from __future__ import annotations

import json

from supervisor.arbiter.reload import ReloadState, shape_of


def test_the_shape_of_what_is_handed_over_holds_all_parts_of_its_parts() -> None:
    shape = shape_of(ReloadState)
    (_, slot) = shape["workers"]
    assert slot["state"]["BACKOFF"] == "BACKOFF"
    assert slot["history"] == {"crashes": ["int"], "misses": ["int"]}
    assert slot["last_exit"][1]["kind"]["PLANNED"] == "planned"
    assert shape["stack_fds"] == ["dict", ["str"], ["int"]]
    assert json.loads(json.dumps(shape)) == shape
