"""A fault of a keeper names its duty, ends by itself, and holds up no other duty."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from supervisor import Message, app_consumers, handler
from supervisor.app_consumers import AppConsumers
from supervisor.broker import inspect
from supervisor.handling.loader import specs_of
from supervisor.keeper import keeper as keeper_module
from supervisor.keeper.keeper import Keeper
from supervisor.keeper.reaper import Reaper
from supervisor.keeper.redis_continuity import RedisContinuity
from supervisor.keeper.trimmer import Trimmer
from supervisor.keys import POOLS_KEY, host_key
from supervisor.log import Limiter
from supervisor.settings.model import Settings
from supervisor.shared_state import HeaderField, SharedState, SlotField
from tests.redis.trimming import STREAM, add
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async, next_ms

#: It comes before STREAM.
OTHER, GROUP = "another", "g"
LEASE, DUTY, WORKS = "can't renew the lease", "can't do housekeeping", "works again"


@handler(STREAM, group=GROUP)
@handler(OTHER, group=GROUP)
async def handle(message: Message) -> None: ...


class Log:
    """What was told: events, with their fields that are not empty."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.told.append((event, {name: value for name, value in fields.items() if value is not None}))

    warning = error = debug = info

    def faults(self) -> list[tuple[str, dict[str, Any]]]:
        """What failed, without the errors."""
        return [
            (event, {name: value for name, value in fields.items() if name != "error"})
            for event, fields in self.told
            if event.startswith("can't")
        ]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    made = Log()
    monkeypatch.setattr(keeper_module, "service_logger", lambda *_: made)
    monkeypatch.setattr(app_consumers, "logger", lambda *_, **__: made)
    monkeypatch.setattr(Limiter, "held_back", lambda *_: 0)  # each line is of interest
    return made


@pytest.fixture
def proxy(redis_server: Any) -> Iterator[Proxy]:
    with Proxy(redis_server.url) as made:
        yield made


def settings_of(url: str) -> Settings:
    return Settings(redis={"url": url}, pool={"host": "host", "workers_max": 2}, consumer={"max_length": 3})  # type: ignore[arg-type]


@pytest.fixture
def shared() -> SharedState:
    made = SharedState()
    made.set(HeaderField.WORKERS, 1)
    made.slot(0).set(SlotField.READY_NS, 1)
    return made


MakeKeeper = Callable[[str], Keeper]


@pytest.fixture
async def keeper_of(log: Log, shared: SharedState) -> AsyncIterator[MakeKeeper]:
    made: list[Keeper] = []

    def make(url: str) -> Keeper:
        settings = settings_of(url)
        made.append(Keeper(settings, specs_of(settings, [handle]), shared, "token"))
        return made[0]

    yield make
    await made[0].close()


async def forbid_reading_pools(redis: Any) -> None:
    others = (f"~{OTHER}", f"~{STREAM}", *(f"~supervisor:{kind}*" for kind in ("host", "later", "supervisor", "{")))
    writing = f"(+eval +hdel +hset ~{POOLS_KEY})"
    await redis.execute_command("ACL", "SETUSER", "default", "resetkeys", *others, writing)


async def test_a_fault_of_the_lease_says_so(proxy: Proxy, log: Log, shared: SharedState, keeper_of: MakeKeeper) -> None:
    keeper = keeper_of(proxy.url)
    proxy.set(refuse=True)
    await keeper.run_cycle()
    assert log.faults() == [(LEASE, {})] and not shared.get(HeaderField.KEEPER_REDIS_OK)
    proxy.set()
    await keeper.run_cycle()
    assert [(event, fields["what"]) for event, fields in log.told[1:]] == [(WORKS, LEASE)]
    assert shared.get(HeaderField.KEEPER_REDIS_OK)


async def test_a_full_server_keeps_a_keeper_from_nothing(
    every_server: Any, log: Log, shared: SharedState, keeper_of: MakeKeeper
) -> None:
    """It proves that the pool is alive, takes over from the dead and makes room."""
    async with every_server.client() as redis:
        for stream in (STREAM, OTHER):
            await redis.xgroup_create(stream, GROUP, "0", mkstream=True)
        for n in range(9):
            await redis.xadd(STREAM, {"n": n})
        await redis.xreadgroup(GROUP, "gone:0", {STREAM: ">"}, count=1)
        await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})
        await redis.hset(POOLS_KEY, "gone", 1)
        keeper = keeper_of(every_server.url)
        keeper._reaper._continuity._since_s -= 60
        await redis.config_set("maxmemory", 1)
        await keeper.run_cycle()
        assert await redis.get(host_key("host")) == b"token" and shared.get(HeaderField.KEEPER_REDIS_OK)
        assert {row["consumer"] for row in await redis.xpending_range(STREAM, GROUP, "-", "+", 20)} == {b"host:0"}
        await redis.xack(STREAM, GROUP, *[entry for entry, _ in await redis.xrange(STREAM)])
        await keeper.run_cycle()
        assert await redis.xlen(STREAM) == 3
        assert log.faults() == []


#: Where a keeper is when Redis goes away, and how it names that.
INTERRUPTED: list[tuple[Any, str, dict[str, str]]] = [
    (inspect, "unread_copies", {"duty": "count the backlog"}),
    (RedisContinuity, "look", {"duty": "reap"}),
    (Reaper, "_reap_group", {"duty": "reap", "stream": OTHER, "group": GROUP}),
    (Reaper, "_forget", {"duty": "forget dead pools"}),
    (Trimmer, "_trim", {"duty": "trim", "stream": STREAM}),
    (Keeper, "_count_trimmed_of", {"duty": "count removed entries", "stream": OTHER, "group": GROUP}),
]


@pytest.mark.parametrize("interrupted", INTERRUPTED, ids=[name for _, name, _ in INTERRUPTED])
async def test_an_outage_names_what_it_has_interrupted(
    proxy: Proxy,
    redis: Any,
    log: Log,
    shared: SharedState,
    keeper_of: MakeKeeper,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: tuple[Any, str, dict[str, str]],
) -> None:
    place, name, named = interrupted
    for stream in (OTHER, STREAM):
        await redis.xgroup_create(stream, GROUP, "0", mkstream=True)
    keeper = keeper_of(proxy.url)

    async def goes_away(*_: Any, **__: Any) -> None:
        proxy.set(refuse=True)
        proxy.cut()
        await keeper._redis.ping()

    await keeper.run_cycle()
    assert not log.told
    with monkeypatch.context() as patched:
        patched.setattr(place, name, goes_away)
        await keeper.run_cycle()
    assert log.faults() == [(DUTY, named)]
    assert not shared.get(HeaderField.KEEPER_REDIS_OK)
    await keeper.run_cycle()
    also = " ".join([DUTY, *(f"{field}={value}" for field, value in named.items())])
    assert log.faults()[1:] == [(LEASE, {"also": also})]
    proxy.set()
    before = len(log.told)
    await keeper.run_cycle()
    assert [(event, fields["what"]) for event, fields in log.told[before:]] == [(WORKS, LEASE)]
    assert shared.get(HeaderField.KEEPER_REDIS_OK)


async def test_a_duty_that_redis_refuses_holds_up_no_other(
    redis_server: Any, redis: Any, log: Log, shared: SharedState, keeper_of: MakeKeeper
) -> None:
    with redis_server.sync() as client:
        add(client, 500)
        client.xgroup_create(STREAM, GROUP, "$")
    await forbid_reading_pools(redis)
    keeper = keeper_of(redis_server.url)
    await keeper.run_cycle()
    assert log.faults() == [(DUTY, {"duty": "reap"})]
    assert await redis.xlen(STREAM) == 3
    assert shared.get(HeaderField.KEEPER_REDIS_OK), "it answers"


async def test_a_group_that_redis_refuses_holds_up_no_other(
    redis_server: Any, redis: Any, log: Log, shared: SharedState, keeper_of: MakeKeeper
) -> None:
    for stream in (OTHER, STREAM):
        await redis.xgroup_create(stream, GROUP, "0", mkstream=True)
        await redis.xadd(stream, {"n": "1"})
        await redis.xreadgroup(GROUP, "host:7", {stream: ">"})  # a slot that does not exist any more
    await next_ms(redis)
    await redis.execute_command("ACL", "SETUSER", "default", "resetkeys", f"%R~{OTHER}", f"~{STREAM}", "~supervisor:*")
    keeper = keeper_of(redis_server.url)
    await keeper.run_cycle()
    await redis.execute_command("ACL", "SETUSER", "default", "allkeys")
    reap = (DUTY, {"duty": "reap", "stream": OTHER, "group": GROUP})
    assert [one for one in log.faults() if one[1]["duty"] == "reap"] == [reap]
    assert [row["name"] for row in await redis.xinfo_consumers(STREAM, GROUP)] == [b"host:0"]


async def test_consumers_in_an_app_name_the_duty_too(redis_server: Any, redis: Any, log: Log) -> None:
    await forbid_reading_pools(redis)
    settings = settings_of(redis_server.url)
    consumers = AppConsumers(settings, specs_of(settings, [handle]), 1, "app")
    await eventually_async(lambda: bool(log.faults()))
    await consumers.stop()
    assert log.faults()[0] == (DUTY, {"duty": "reap"})


async def test_consumers_in_an_app_leave_what_waits_for_its_turn(
    redis_server: Any, redis: Any, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = asyncio.Event()

    @handler(STREAM, group=GROUP, key="customer")
    async def bill(message: Message) -> None:
        await may_end.wait()

    async def looks() -> int:
        return int((await redis.info("commandstats")).get("cmdstat_hkeys", {"calls": 0})["calls"])

    async def waits() -> bool:
        (info,) = await inspect.groups(redis, [(STREAM, GROUP)])
        return info.waiting_turn == 2

    monkeypatch.setattr(app_consumers, "RENEW_S", 0.05)
    for _ in range(3):
        await redis.xadd(STREAM, {"customer": "a"})
    settings = settings_of(redis_server.url)
    consumers = AppConsumers(settings, specs_of(settings, [bill]), 1, "app")
    try:
        await eventually_async(waits)
        before = await looks()

        async def has_looked() -> bool:
            return await looks() > before + 2

        await eventually_async(has_looked)
        assert "consumer reaped" not in [event for event, _ in log.told]
    finally:
        may_end.set()
        await consumers.stop()
