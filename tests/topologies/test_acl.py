"""ACL: the rights that a pool needs and no more; what happens where one of them is missing, at boot and later."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor.errors import EXIT_REDIS
from supervisor.keys import turns_key
from tests.support.pool import Pool
from tests.support.recording import SIMPLE
from tests.support.servers import RedisServer
from tests.support.topologies import Admin, bare
from tests.support.waiting import eventually
from tests.topologies.everything import CONFIG, HANDLERS, everything_works, handled, said
from tests.topologies.rights import COMMANDS, EXAMPLE, KEYS, OPTIONAL, PASSWORD, grant, refusals


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as running:
        yield running


@pytest.fixture
def admin(server: RedisServer) -> Iterator[Admin]:
    with bare(server) as client:
        grant(client, "reset", "on", f">{PASSWORD}")
        yield client


def url_of(server: RedisServer, user: str = "pool", password: str = PASSWORD) -> str:
    return f"redis://{user}:{password}@127.0.0.1:{server.port}/0"


def test_these_rights_are_enough_for_all_that_a_pool_does(
    server: RedisServer, admin: Admin, start_pool: Callable[..., Pool]
) -> None:
    grant(admin, KEYS, COMMANDS, OPTIONAL, EXAMPLE)
    pool = start_pool(HANDLERS, redis_url=url_of(server), api=True, config=CONFIG)
    everything_works(pool)
    assert not refusals(admin)
    assert PASSWORD not in pool.output


LIMITED = """
from supervisor import Message, handler

@handler("events", group="workers", key="n", group_concurrency=5, rate="100/s")
async def handle(message: Message) -> None: ...
"""


def test_these_rights_are_enough_for_handlers_with_limits(
    server: RedisServer, admin: Admin, start_pool: Callable[..., Pool]
) -> None:
    grant(admin, KEYS, COMMANDS, OPTIONAL)
    for _ in range(30):
        admin.xadd("events", {"n": "1"})
    pool = start_pool(LIMITED, redis_url=url_of(server), workers=1)

    def done() -> bool:
        group = admin.xinfo_groups("events")[0]
        return (
            group["lag"] == 0
            and group["pending"] == 0
            and bool(admin.hget(turns_key("events", "workers"), "looked_ms"))
        )

    eventually(done)
    assert pool.stop() == 0 and not refusals(admin)


def test_without_the_optional_rights_a_pool_works_and_drains(
    server: RedisServer, admin: Admin, start_pool: Callable[..., Pool]
) -> None:
    grant(admin, KEYS, COMMANDS)
    pool = start_pool(SIMPLE, redis_url=url_of(server), config="consumer.block_ms = 1000")
    said(pool, "publish", "events", "n=1")
    handled(pool, "1")
    assert admin.client_kill_filter(_type="normal", skipme=True), "all connections were lost"
    said(pool, "publish", "events", "n=2")
    handled(pool, "2")
    # A blocked read can't be ended early: it is waited for.
    assert pool.stop() == 0
    refused = " ".join(refusals(admin))
    assert "client|setname" in refused and "client|id" in refused and "config|get" in refused


#: How many times a second one command of two workers may be refused.
REFUSED_PER_S_MAX = 40


@pytest.mark.parametrize(
    "command", ["xack", *(pytest.param(word, marks=pytest.mark.long) for word in ("xreadgroup", "eval evalsha"))]
)
def test_a_right_that_is_taken_away_ends_no_worker_and_comes_back(
    command: str, server: RedisServer, admin: Admin, start_pool: Callable[..., Pool]
) -> None:
    failing = command.startswith("eval")
    handlers = HANDLERS if failing else SIMPLE
    grant(admin, KEYS, COMMANDS, OPTIONAL)
    pool = start_pool(handlers, redis_url=url_of(server), config="consumer.block_ms = 100")
    pids = pool.pids()
    grant(admin, " ".join(f"-{word}" for word in command.split()))
    admin.xadd("events", {"n": "poison" if failing else "1"})
    eventually(lambda: count(admin, command) >= 3, what="refused again and again")
    before, seconds = count(admin, command), admin.time()[0]
    eventually(lambda: admin.time()[0] >= seconds + 2, interval_s=0.1, what="time for a hot loop to show")
    more = count(admin, command) - before
    assert more < (admin.time()[0] + 1 - seconds) * REFUSED_PER_S_MAX
    assert pool.pids() == pids, "the workers live on"
    grant(admin, " ".join(f"+{word}" for word in command.split()))
    if failing:
        eventually(lambda: admin.xlen("supervisor:{events}:workers:dead") == 1, 40, what="the dead letter was written")
    else:
        handled(pool, "1", limit_s=40)
    eventually(lambda: admin.xpending("events", "workers")["pending"] == 0, 40, what="settled")
    assert pool.pids() == pids


def count(admin: Admin, commands: str) -> int:
    stats = admin.info("commandstats")
    return sum(stats.get(f"cmdstat_{command}", {}).get("rejected_calls", 0) for command in commands.split())


def boot(folder: Path, url: str) -> tuple[int, str]:
    with Pool(folder, SIMPLE, redis_url=url, config="redis.connect_timeout_s = 5") as pool:
        pool.start(ready=False)
        return pool.wait(), pool.output


BOOT = {
    "wrong password": (COMMANDS, "pool", "wr0ng", r"refuses the credentials"),
    "unknown user": (COMMANDS, "nobody", PASSWORD, r"refuses the credentials"),
    "no ping": (COMMANDS + "-ping", "pool", PASSWORD, r"refuses a command: .*'ping'.*README"),
    "no xgroup": (COMMANDS + "-xgroup", "pool", PASSWORD, r"refuses a command: .*'xgroup.*README"),
    "no lease": (COMMANDS + "-eval", "pool", PASSWORD, r"refuses a command: .*'eval'.*README"),
    "no del": (COMMANDS + "-del", "pool", PASSWORD, r"refuses a command: .*\+eval \+del \+get \+set,.*README"),
    "no hdel": (COMMANDS + "-hdel", "pool", PASSWORD, r"refuses a command: .*\+eval \+hdel \+hset,.*README"),
    "no info": (COMMANDS + "-info", "pool", PASSWORD, r"refuses a command: .*'info'.*README"),
}


@pytest.mark.parametrize("case", BOOT)
def test_what_is_missing_at_boot_is_said_at_once(case: str, server: RedisServer, admin: Admin, tmp_path: Path) -> None:
    commands, user, password, words = BOOT[case]
    grant(admin, KEYS, commands)
    code, output = boot(tmp_path / "p", url_of(server, user, password))
    assert code == EXIT_REDIS, output
    assert re.search(words, output) and password not in output
    assert "does not answer" not in output, "it was not waited for"


def test_a_password_that_was_left_out(server: RedisServer, admin: Admin, tmp_path: Path) -> None:
    admin.execute_command("ACL", "SETUSER", "default", "resetpass", ">secret")
    code, output = boot(tmp_path / "p", server.tcp_url)
    assert code == EXIT_REDIS, output
    assert "refuses the credentials: Authentication required" in output


def test_keys_that_are_not_allowed(server: RedisServer, admin: Admin, tmp_path: Path) -> None:
    grant(admin, COMMANDS, "~supervisor:*")
    code, output = boot(tmp_path / "p", url_of(server))
    assert code == EXIT_REDIS, output
    assert re.search(r"refuses a command: .*key.*README", output)


def test_a_key_that_may_only_be_written(server: RedisServer, admin: Admin, tmp_path: Path) -> None:
    others = (f"~supervisor:{kind}*" for kind in ("host", "later", "supervisor", "{"))
    grant(admin, COMMANDS, "~events", *others, "%W~supervisor:pools")
    code, output = boot(tmp_path / "p", url_of(server))
    assert code == EXIT_REDIS, output
    assert re.search(r"refuses a command: .*read and write 'supervisor:pools'.*README", output)
