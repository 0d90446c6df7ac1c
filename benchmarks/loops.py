"""Loops that drain a stream without the pool: `python -m benchmarks.loops NAME URL STREAM GROUP WORKLOAD`.

`pipeline` is what a good redis-py user writes (`supervisor.bench.redis_py_loop`): hiredis, uvloop, one
`pipeline(transaction=False)` a batch with XACK and the next XREADGROUP. `bare` drives redis-py's
connection by hand with two batches in flight. Both await the workload for each entry, and leave when
nothing is left.
"""

import sys
from collections.abc import Callable, Coroutine
from typing import Any

import hiredis
import uvloop
from redis.asyncio import Redis
from redis.asyncio.connection import Connection, parse_url

from benchmarks.workloads import WORKLOADS, Workload
from supervisor.bench.redis_py_loop import COUNT, drain

#: Its annotation allows tuples of one word only.
pack: Any = hiredis.pack_command


async def pipeline(url: str, stream: str, group: str, workload: Workload) -> None:
    """redis-py's own commands and its own defaults."""
    async with Redis.from_url(url) as redis:
        await drain(redis, stream, group, workload.work, at_once=workload.at_once)


async def bare(url: str, stream: str, group: str, workload: Workload) -> None:
    """redis-py's connection, commands packed by hiredis, the next read sent before the present batch is handled."""
    options: dict[str, Any] = dict(parse_url(url))
    kind = options.pop("connection_class", Connection)
    connection: Any = kind(**options, protocol=2)
    await connection.connect()
    read = pack(("XREADGROUP", "GROUP", group, "loop", "COUNT", COUNT, "STREAMS", stream, ">"))
    await connection.send_packed_command(read, check_health=False)
    await connection.send_packed_command(read, check_health=False)
    waiting_for = ["read", "read"]
    while waiting_for:
        what = waiting_for.pop(0)
        reply = await connection.read_response(disable_decoding=True)
        if what == "ack" or not reply:
            continue
        done = []
        for entry_id, pairs in reply[0][1]:
            names = iter(pairs)
            await workload.work(dict(zip(names, names, strict=True)))
            done.append(entry_id)
        ack = pack(("XACK", stream, group, *done))
        await connection.send_packed_command(ack + read, check_health=False)
        waiting_for += ["ack", "read"]
    await connection.disconnect()


LOOPS: dict[str, Callable[[str, str, str, Workload], Coroutine[Any, Any, None]]] = {"pipeline": pipeline, "bare": bare}

if __name__ == "__main__":
    uvloop.run(LOOPS[sys.argv[1]](sys.argv[2], sys.argv[3], sys.argv[4], WORKLOADS[sys.argv[5]]))
