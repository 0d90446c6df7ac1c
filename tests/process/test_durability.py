"""What is lost when Redis itself is killed, by its durability: the README's table, line by line."""

from collections.abc import Callable

import pytest

from tests.support.pool import Pool
from tests.support.recording import SIMPLE, seen
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
EACH = 300
#: durability, options of the server, what of the first and of the second half is handled after the kill.
MODES = [
    ("none", {}, 0, 0),
    ("rdb", {"options": ("--save", "3600 1000000")}, EACH, 0),
    ("everysec", {"appendonly": True, "options": ("--appendfsync", "everysec")}, EACH, EACH),
    ("always", {"appendonly": True}, EACH, EACH),
]

LONG = ("none", "always")


@pytest.mark.parametrize(
    ("durability", "how", "first", "second"),
    [pytest.param(*mode, id=mode[0], marks=[pytest.mark.long] if mode[0] in LONG else []) for mode in MODES],
)
def test_a_killed_redis_loses_what_its_durability_says(
    start_pool: StartPool, durability: str, how: dict[str, object], first: int, second: int
) -> None:
    with RedisServer(**how) as server:  # type: ignore[arg-type]
        pool = start_pool(SIMPLE, redis_url=server.url, workers=2)
        assert pool.status()["redis"]["durability"] == durability
        assert pool.command("pause").returncode == 0
        redis = server.sync()
        eventually(
            lambda: not any("b" in each["flags"] for each in redis.client_list()), what="no worker reads any more"
        )
        for n in range(EACH):
            redis.xadd("events", {"n": f"before-{n}"})
        redis.save()  # servers with snapshots keep this
        if durability == "none":
            (server.folder / "dump.rdb").unlink()
        for n in range(EACH):
            redis.xadd("events", {"n": f"after-{n}"})
        assert redis.xlen("events") == 2 * EACH and not seen(pool)
        # A write to the file is put off for up to two seconds while another is synced: the README says so.
        eventually(lambda: not redis.info("persistence").get("aof_buffer_length"), what="the file has been written")
        pid = server.pid
        server.kill()
        server.start()
        assert server.pid != pid
        assert pool.command("resume").returncode == 0
        # The pool goes on in each case, with all that is published from then on.
        server.sync().xadd("events", {"n": "new"})
        eventually(lambda: seen(pool)["new"])
        eventually(lambda: len(seen(pool)) == first + second + 1)
        halves = [sum(text.startswith(half) for text in seen(pool)) for half in ("before", "after")]
        assert halves == [first, second]
        assert max(seen(pool).values()) == 1
        assert not pool.events("worker exited")
