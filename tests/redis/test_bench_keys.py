"""What a benchmark that was killed leaves in Redis, and what the next one removes of it."""

from supervisor import keys
from supervisor.bench.own_keys import OwnKeys, own_keys

KILLED, ALIVE = OwnKeys("00000000"), OwnKeys("11111111")


async def test_the_keys_of_a_killed_benchmark_are_removed(redis) -> None:
    for own in (KILLED, ALIVE):
        await redis.hset(keys.POOLS_KEY, own.host, 1)
        await redis.xadd(own.stream, {"n": 1})
        await redis.xadd(keys.dead_key(own.stream, "model"), {"n": 1})
    await redis.set(keys.host_key(ALIVE.host), "its lease")
    await redis.hset(keys.POOLS_KEY, "bench-of-theirs", 1)
    async with own_keys(redis) as own:
        assert own.token not in (KILLED.token, ALIVE.token)
        assert await redis.exists(*KILLED.all()) == 0
    assert await redis.exists(*ALIVE.all()) == 3
    assert set(await redis.hkeys(keys.POOLS_KEY)) == {ALIVE.host.encode(), b"bench-of-theirs"}
