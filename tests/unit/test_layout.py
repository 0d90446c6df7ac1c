"""The layout of the reload state includes every nested field."""

import json

from supervisor.arbiter.reload import ReloadState, shape_of


def test_the_shape_of_the_reload_state_contains_all_nested_parts() -> None:
    shape = shape_of(ReloadState)
    (_, slot) = shape["workers"]
    assert slot["state"]["BACKOFF"] == "BACKOFF"
    assert slot["history"] == {"crashes": ["int"], "misses": ["int"]}
    assert slot["last_exit"][1]["kind"]["PLANNED"] == "planned"
    assert shape["stack_fds"] == ["dict", ["str"], ["int"]]
    assert json.loads(json.dumps(shape)) == shape
