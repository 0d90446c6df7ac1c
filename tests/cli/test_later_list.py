"""`supervisor later list`: what it says of malformed members, before and after they are due."""

from math import inf
from pathlib import Path

from supervisor.core.later import digest_of
from supervisor.keys import later_key
from tests.cli.run import lines_of, run
from tests.support.servers import AnyServer

HOURS_MS = 5_000 * 3_600_000


def test_a_malformed_member_waits_until_it_is_due_as_its_count_says(redis_server: AnyServer, tmp_path: Path) -> None:
    with redis_server.sync() as redis:
        seconds, _ = redis.time()
        redis.zadd(later_key("reports"), {"coming": seconds * 1000 + HOURS_MS, "was due": inf})
    listed = run("later", "list", "reports", cwd=tmp_path, redis_url=redis_server.url)
    coming, was_due = [line for line in listed.stdout.splitlines() if "malformed: not JSON" in line]
    assert coming.startswith("in 208 d") and digest_of(b"coming") in coming
    assert was_due.startswith("never") and digest_of(b"was due") in was_due
    told = lines_of(run("later", "list", "reports", "--json", cwd=tmp_path, redis_url=redis_server.url))
    assert [(one["member"], one["due"] is None) for one in told] == [("coming", False), ("was due", True)]
