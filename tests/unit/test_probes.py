"""What makes the service unready, from what is known of Redis and the pool."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from api.probe_routes import _answer, _checks
from api.service import Pulse
from api.snapshots import PartHealth
from api.status_routes import seen_from_here

KEEPER = {"name": "keeper", "state": "READY", "beat_age_s": 1.0, "last_exit": None}
LEFT = {"reason": "signal", "code": None, "signal": 9, "uptime_s": 1.0}


def pulse(error: str = "", **pool: Any) -> Pulse:
    """A pool with one ready worker and a keeper, changed by `pool`."""
    known = {"state": "healthy", "workers": [{"state": "READY"}], "services": [KEEPER]} | pool
    return Pulse(PartHealth(error, time.monotonic()), PartHealth("", time.monotonic()), known)


def failed(found: Pulse | None) -> list[str]:
    return [check.name for check in _checks(found) if check.failure]


def test_a_pool_that_works_is_ready() -> None:
    assert failed(pulse()) == []
    assert failed(pulse(services=[KEEPER | {"state": "STARTING", "beat_age_s": None}])) == []
    assert failed(pulse(services=[KEEPER | {"state": "DRAINING"}])) == [], "it is replaced on purpose"


@pytest.mark.parametrize(
    ("pool", "part", "words"),
    [
        ({"services": [KEEPER | {"state": "BACKOFF", "last_exit": LEFT}]}, "keeper", "its last exit: signal"),
        ({"services": [KEEPER | {"state": "FAILED", "last_exit": LEFT}]}, "keeper", "not running"),
        ({"services": []}, "keeper", "not running"),
        ({"services": [KEEPER | {"beat_age_s": 25.0}]}, "keeper", "done nothing for 25 s"),
        ({"workers": []}, "workers", "there are none"),
        ({"workers": [{"state": "BACKOFF"}, {"state": "STARTING"}]}, "workers", "0 of 2 are ready"),
        ({"state": "draining"}, "workers", "draining"),
        ({"paused_since": "2026-01-01T00:00:00Z"}, "paused", "2026-01-01"),
        (
            {"cut_off": [{"stream": "s", "group": "g", "workers": 1, "of": 1, "reason": "NOPERM"}]},
            "reading",
            "s / g is not read: NOPERM",
        ),
    ],
)
def test_each_part_that_is_missing_is_named_and_can_be_excluded(pool: dict[str, Any], part: str, words: str) -> None:
    checks = _checks(pulse(**pool))
    assert [check.name for check in checks if check.failure] == [part]
    answer = _answer(checks, "")
    assert answer.status_code == 503 and words in bytes(answer.body).decode()
    assert _answer(checks, None, ["redis"]).status_code == 503
    assert _answer(checks, None, [part]).status_code == 200


def test_a_keeper_that_waits_for_redis_is_not_the_trouble() -> None:
    assert failed(pulse("no answer in time", services=[KEEPER | {"beat_age_s": 25.0}])) == ["redis"]


def test_a_state_directory_that_can_not_be_looked_into_is_no_error() -> None:
    class Hidden:
        def exists(self) -> bool:
            raise PermissionError

    service: Any = SimpleNamespace(paths=SimpleNamespace(control=Hidden()))
    state = {"state": "down", "pid": None, "reason": "no permission"}
    assert seen_from_here(service, state) == state


def test_nothing_is_ready_before_anything_is_known() -> None:
    assert failed(None) == ["redis"]
