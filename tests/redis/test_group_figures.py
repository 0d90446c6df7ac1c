"""What the figures of groups cost."""

from typing import Any

import pytest

from supervisor.broker import inspect
from supervisor.broker.connect import client
from supervisor.broker.routed_connection import LostConnectionMixin
from supervisor.keys import dead_key, replay_key, retries_key

GROUP = "g"


async def fill(redis: Any, stream: str) -> None:
    """Put something of each kind there."""
    for key in (stream, replay_key(stream, GROUP)):
        await redis.xgroup_create(key, GROUP, "0", mkstream=True)
        for n in range(3):
            await redis.xadd(key, {"n": n})
        await redis.xreadgroup(GROUP, "host:0", {key: ">"}, count=1)
        await redis.hset(retries_key(key, GROUP), "1-1", "1:2:3")
    await redis.xadd(dead_key(stream, GROUP), {"n": 1})


async def test_each_group_costs_two_round_trips_at_most(
    every_server: Any, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(f"s{n}", GROUP) for n in range(4)]
    for stream, _ in pairs:
        await fill(redis, stream)
    sent = 0
    plain = LostConnectionMixin.send_packed_command

    async def counted(*arguments: Any, **options: Any) -> None:
        nonlocal sent
        sent += 1
        await plain(*arguments, **options)

    async with client(every_server.url) as own:
        await own.ping()
        monkeypatch.setattr(LostConnectionMixin, "send_packed_command", counted)
        found = await inspect.groups(own, pairs[:1])
        first, sent = sent, 0
        found += await inspect.groups(own, pairs)
    assert {(one.pending, one.replaying, one.retrying, one.lag, one.dead) for one in found} == {(4, 3, 2, 2, 1)}
    assert first > 0 and sent <= first + 3 * 2
