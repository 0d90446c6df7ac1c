"""Messages for later and schedules in real pools, whose keepers are killed while messages become due."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

from supervisor.keys import later_key
from tests.cli.run import run
from tests.process.test_lease import keeper
from tests.support.pool import Pool
from tests.support.servers import AnyServer
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
HANDLERS = """
    from supervisor import handler

    @handler("events", group="g")
    async def handle(message: dict[str, str]) -> None:
        pass
"""
SCHEDULE = """
    [pool]
    name = "{name}"
    [schedule."ticking"]
    stream = "ticks"
    every = "1s"
    fields = {{ at = "{{tick}}" }}
    missed = "all"
"""
MESSAGES = 1_000
SPREAD_MS = 2_000


def now_ms(redis: Any) -> int:
    seconds, micros = redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


def two_pools(start_pool: StartPool, server: AnyServer) -> list[Pool]:
    names = ("one", "two")
    return [start_pool(HANDLERS, redis_url=server.url, workers=1, config=SCHEDULE.format(name=name)) for name in names]


def add(redis: Any, count: int, spread_ms: int) -> None:
    """Messages that become due one after the other, as another program writes them."""
    first = now_ms(redis) + 200
    members = {json.dumps({"id": str(n), "fields": {"n": n}}): first + n * spread_ms // count for n in range(count)}
    redis.zadd(later_key("events"), members)


def check(server: AnyServer, count: int) -> None:
    """Each message entered once, each tick was published once, and all were handled."""
    redis = server.sync()
    eventually(lambda: not redis.exists(later_key("events")))
    numbers = Counter(int(fields[b"n"]) for _, fields in redis.xrange("events"))
    assert numbers == Counter(range(count)), (numbers - Counter(range(count)), Counter(range(count)) - numbers)
    eventually(lambda: redis.xlen("ticks") >= 3)
    ticks = [fields[b"at"] for _, fields in redis.xrange("ticks")]
    assert sorted(set(ticks)) == ticks, "one message for each tick, of two pools, in order"
    last = redis.xrevrange("events", count=1)[0][0]
    eventually(lambda: redis.xinfo_groups("events")[0]["last-delivered-id"] == last)
    eventually(lambda: redis.xpending("events", "g")["pending"] == 0)


def test_each_message_enters_once_while_keepers_are_killed(start_pool: StartPool, redis_server: AnyServer) -> None:
    redis, pools = redis_server.sync(), two_pools(start_pool, redis_server)
    add(redis, MESSAGES, SPREAD_MS)
    for kill in range(4):
        eventually(lambda kill=kill: redis.xlen("events") > kill * MESSAGES // 5)
        os.kill(keeper(pools[kill % 2]).pid, signal.SIGKILL)
    check(redis_server, MESSAGES)


def test_commands_and_status_of_what_is_published_later(start_pool: StartPool, redis_server: AnyServer) -> None:
    redis = redis_server.sync()
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, config=SCHEDULE.format(name="one"))

    def cli(*words: str) -> Any:
        return run(*words, "--config", str(pool.config), cwd=pool.folder, redis_url=redis_server.url)

    assert (
        "--after '': must be seconds, or a time with its unit" in cli("publish", "events", "n=1", "--after", "").stderr
    )
    waits = cli("publish", "events", "n=1", "--after", "1h")
    assert waits.returncode == 0 and waits.stderr.startswith("due ")
    first, again = (cli("publish", "other", "n=2", "--at", "2099-01-01T08:00Z", "--key", "k") for _ in range(2))
    assert first.stdout == again.stdout
    listed = [json.loads(line) for line in cli("later", "list", "--json").stdout.splitlines()]
    assert [one["id"] for one in listed] == [waits.stdout.strip(), first.stdout.strip()]
    assert listed[1]["due"] == "2099-01-01T08:00:00.000+00:00" and listed[1]["fields"] == {"n": "2"}
    assert "in 59 m" in cli("later", "list", "events").stdout
    [one, other] = json.loads(cli("status", "--json").stdout)["later"]
    assert one == {"stream": "events", "waiting": 1, "overdue_s": None, "malformed": 0} and other["stream"] == "other"
    assert "1 message of events" in cli("status").stdout
    entry = cli("later", "run", "events", waits.stdout.strip()).stdout.strip()
    assert [name.decode() for name, _ in redis.xrange("events")] == [entry]
    later_id = waits.stdout.strip()
    for words in ((later_id, "events"), (later_id,), (entry,)):
        assert cli("explain", *words).stdout.splitlines()[1] == f"published later, as {later_id}"
    assert "waiting until it is due: 2099-01-01" in cli("explain", first.stdout.strip()).stdout
    assert cli("later", "cancel", "other", first.stdout.strip()).stdout == first.stdout
    gone = cli("later", "cancel", "other", first.stdout.strip())
    assert gone.returncode == 1 and "not there: it was cancelled" in gone.stderr
    gone = cli("later", "run", "event", later_id, "--json")
    assert json.loads(gone.stdout)["outcome"] == "not there" and "did you mean 'events'" in gone.stderr
    assert "a message for later, cancelled " in cli("explain", first.stdout.strip(), "other").stdout
    assert "nothing is to be published later" in cli("later", "list").stderr
    assert cli("schedule", "pause", "ticking").stdout == "ticking is paused\n"
    assert "paused since" in cli("schedule", "list").stdout
    assert "schedule  ticking: paused since 20" in cli("status").stdout
    assert cli("schedule", "resume", "ticking").stdout == "ticking goes on\n"
    [shown] = json.loads(cli("schedule", "list", "--json").stdout)
    assert (shown["name"], shown["every_s"], len(shown["next"])) == ("ticking", 1, 3)
    unknown = cli("schedule", "run", "tickin")
    assert unknown.returncode == 2 and "did you mean 'ticking'" in unknown.stderr
    entry = json.loads(cli("schedule", "run", "ticking", "--json").stdout)["id"]
    assert redis.xrange("ticks", entry, entry)
