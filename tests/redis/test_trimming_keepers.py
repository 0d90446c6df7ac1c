"""Keepers that trim: one at a time, in steps, and they say what holds them up. On every server."""

from typing import Any

from supervisor import Message, handler
from supervisor.handling.loader import specs_of
from supervisor.keeper.keeper import Keeper
from supervisor.keeper.lease import LEASE_MS
from supervisor.keeper.trimmer import Trimmer
from supervisor.keys import trimmer_key
from supervisor.log import FaultLog
from supervisor.settings.model import Settings
from supervisor.shared_state import HeaderField, SharedState
from tests.redis.trimming import STREAM, add, read
from tests.support.waiting import eventually_async


class Log:
    """What was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def debug(self, *_: Any, **__: Any) -> None: ...

    def info(self, *_: Any, **__: Any) -> None: ...

    def warning(self, what: str, **details: Any) -> None:
        self.told.append((what, details))


async def test_a_key_that_is_not_a_stream_prevents_no_other_work_of_a_keeper_that_scales(every_server: Any) -> None:
    @handler("wrong", group="g")
    @handler(STREAM, group="g")
    async def handle(message: Message) -> None: ...

    limits = {"pool": {"workers_max": 2}, "consumer": {"max_length": 3}}
    chosen, shared = Settings(redis={"url": every_server.url}, **limits), SharedState()  # type: ignore[arg-type]
    with every_server.sync() as client:
        client.set("wrong", "1")
        add(client, 500)
        client.xgroup_create(STREAM, "g", "$")
        keeper = Keeper(chosen, specs_of(chosen, [handle]), shared, "token")
        await keeper.run_cycle()
        await keeper.close()
        assert shared.get(HeaderField.KEEPER_REDIS_OK) == 1
        assert client.xlen(STREAM) == 3


async def test_one_keeper_trims_a_stream_at_a_time(every_server: Any) -> None:
    chosen = Settings(consumer={"max_length": 3}, stream={"all": {"max_length": 0}})
    with every_server.sync() as client:
        add(client, 500)
        for stream in (STREAM, "all", "foreign"):
            client.xgroup_create(stream, "g", "$", mkstream=True)
        for stream in ("all", "foreign"):
            for n in range(5):
                client.xadd(stream, {"n": n})
        async with every_server.client() as redis:
            first, second = (
                Trimmer(redis, chosen, t, [(STREAM, "g"), ("all", "g")], FaultLog(Log())) for t in ("1", "2")
            )
            await first.look()
            assert client.xlen(STREAM) == 3 and client.get(trimmer_key(STREAM)) == b"1"
            assert 0 < client.pttl(trimmer_key(STREAM)) <= LEASE_MS
            add(client, 5, first=1000)
            read(client, "g", 100)
            await second.look()
            assert client.xlen(STREAM) == 8, "the other one was elected"
            await first.look()
            assert client.xlen(STREAM) == 3
            add(client, 5, first=2000)
            read(client, "g", 100)
            client.delete(trimmer_key(STREAM))  # as it does when the elected one is gone
            await second.look()
            assert client.xlen(STREAM) == 3
        assert client.xlen("all") == client.xlen("foreign") == 5
        assert not client.exists(trimmer_key("all"), trimmer_key("foreign"))


async def test_a_group_that_holds_back_is_told_of_now_and_then(every_server: Any) -> None:
    clock, log = [0.0], Log()
    with every_server.sync() as client:
        add(client, 50)
        client.xgroup_create(STREAM, "g", "$")
        client.xgroup_create(STREAM, "left", "0")
        async with every_server.client() as redis:
            chosen = Settings(consumer={"max_length": 3})
            trimmer = Trimmer(redis, chosen, "1", [(STREAM, "g")], FaultLog(log), lambda: clock[0])
            for _ in range(1000):
                await trimmer.look()
                clock[0] += 3.3
            assert client.xlen(STREAM) == 50
            assert len(log.told) == 6, "an hour less five minutes: after one minute, and every ten"
            what, details = log.told[0]
            assert what == "retention held back"
            assert details == {"stream": STREAM, "group": "left", "held_s": 63}
            client.xgroup_destroy(STREAM, "left")
            await trimmer.look()
            assert client.xlen(STREAM) == 3


async def test_a_key_that_is_no_stream_holds_up_no_other(every_server: Any) -> None:
    log = Log()
    with every_server.sync() as client:
        client.set("wrong", "x")
        add(client, 5)
        client.xgroup_create(STREAM, "g", "$")
        async with every_server.client() as redis:
            groups = [("wrong", "g"), (STREAM, "g")]
            await Trimmer(redis, Settings(consumer={"max_length": 1}), "1", groups, FaultLog(log)).look()
        assert client.xlen(STREAM) == 1
    assert [(details["duty"], details["stream"]) for _, details in log.told] == [("trim", "wrong")]


async def test_a_backlog_of_old_entries_goes_while_the_server_serves(redis_server: Any) -> None:
    """Many are removed in one look, and no other client waits long for it."""
    with redis_server.sync() as client:
        for _ in range(20):
            pipe = client.pipeline(transaction=False)
            for n in range(10_000):
                pipe.xadd(STREAM, {"n": n})
            pipe.execute()
        client.xgroup_create(STREAM, "g", "$")
        client.config_set("slowlog-max-len", 10_000)
        client.config_set("slowlog-log-slower-than", 0)
        client.slowlog_reset()
        async with redis_server.client() as redis:
            trimmer = Trimmer(redis, Settings(consumer={"max_length": 10}), "1", [(STREAM, "g")], FaultLog(Log()))
            await eventually_async(lambda: _looked(trimmer, client))
        calls = [row["duration"] for row in client.slowlog_get(1000) if row["command"].startswith(b"EVAL")]
    print(f"{len(calls)} calls, the longest {max(calls) / 1000:.2f} ms")
    assert len(calls) >= 20 and min(calls) < 50_000


async def _looked(trimmer: Trimmer, client: Any) -> bool:
    await trimmer.look()
    return bool(client.xlen(STREAM) == 10)
