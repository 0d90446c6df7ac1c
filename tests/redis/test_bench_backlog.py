"""What `supervisor bench` measures of a drain that is over before it looks."""

import time
from typing import Any

from supervisor.bench.own_keys import OwnKeys
from supervisor.bench.run import LOOP_GROUP, Backlog

MESSAGES = 1000


async def test_a_drain_that_was_over_at_the_first_look_is_measured_from_its_beginning(redis: Any) -> None:
    backlog = Backlog(redis, OwnKeys("test"), MESSAGES)
    await backlog.fill()
    begin = await backlog.set_back(LOOP_GROUP)
    [[_, entries]] = await redis.xreadgroup(LOOP_GROUP, "one", {backlog.stream: ">"})
    assert len(entries) == MESSAGES + 1
    await redis.xack(backlog.stream, LOOP_GROUP, *(entry_id for entry_id, _ in entries))
    took_s = time.perf_counter() - begin.at_s

    assert await backlog.drained(LOOP_GROUP, begin, lambda: True) <= (MESSAGES + 1) / took_s
