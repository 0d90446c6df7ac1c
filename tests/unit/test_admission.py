"""Which publishes are refused for the stream, the backlog or the memory of Redis."""

import pytest

from api.admission import check_allowed, check_limits
from api.problems import Problem
from supervisor.settings.model import ApiSettings
from supervisor.status import RedisStatus

GROUPS = [{"stream": "a", "group": "g", "lag": 5, "pending": 1}, {"stream": "b", "group": "g", "lag": 0, "pending": 0}]


@pytest.mark.parametrize(
    ("settings", "stream", "memory_percent", "kind"),
    [
        ({"max_lag": 5}, "a", None, "backlog"), ({"max_lag": 6}, "a", None, ""), ({"max_lag": 5}, "b", None, ""),
        ({"max_lag": 5}, "new", None, ""), ({}, "a", 99.0, ""), ({"max_memory_percent": 90.0}, "b", 90.5, "memory"),
        ({"max_memory_percent": 90.0}, "b", 90.0, ""), ({"max_memory_percent": 90.0}, "b", None, ""),
    ],
)  # fmt: skip
def test_limits(settings: dict[str, float], stream: str, memory_percent: float | None, kind: str) -> None:
    redis_status = RedisStatus({}, GROUPS, memory_percent=memory_percent)
    found = ""
    try:
        check_limits(ApiSettings(**settings), stream, redis_status)
    except Problem as problem:
        found = problem.kind
        assert problem.headers and int(problem.headers["Retry-After"]) >= 1
    assert found == kind
    check_limits(ApiSettings(**settings), stream, None)


@pytest.mark.parametrize(
    ("allowed", "stream", "good"),
    [([], "any", True), (["a"], "a", True), (["a"], "ab", False), (["a*"], "ab", True), (["a", "b:*"], "B:x", False)],
)
def test_the_allow_list(allowed: list[str], stream: str, good: bool) -> None:
    if good:
        check_allowed(ApiSettings(streams=allowed), stream)
        return
    with pytest.raises(Problem) as refused:
        check_allowed(ApiSettings(streams=allowed), stream)
    assert refused.value.kind == "stream-not-allowed"
