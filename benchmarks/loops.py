"""Loops that drain a stream without the pool: `python -m benchmarks.loops NAME URL STREAM GROUP WORKLOAD`.

`pipeline` is what a good redis-py user writes: hiredis, uvloop, one `pipeline(transaction=False)` a
batch with XACK and the next XREADGROUP. `bare` drives redis-py's connection by hand with two batches
in flight. Both await the workload for each entry. They leave when nothing is left.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import hiredis
import uvloop
from redis.asyncio import Redis
from redis.asyncio.connection import Connection, parse_url

from benchmarks.workloads import WORKLOADS, Workload

COUNT = 100
#: Its annotation allows tuples of one word only.
pack: Any = hiredis.pack_command
Work = Callable[[dict[bytes, bytes]], Awaitable[None]]


async def pipeline(url: str, stream: str, group: str, workload: Workload) -> None:
    """redis-py's own commands, one pipeline a batch."""
    done: list[bytes] = []
    count = max(COUNT, workload.at_once)
    run = run_together if workload.at_once > 1 else run_each
    async with Redis.from_url(url) as redis:
        while True:
            async with redis.pipeline(transaction=False) as pipe:
                if done:
                    pipe.xack(stream, group, *done)
                pipe.xreadgroup(group, "loop", {stream: ">"}, count=count)
                reply = (await pipe.execute())[-1]
            entries = entries_of(reply)
            if not entries:
                return
            done = await run(workload.work, entries)


async def run_each(work: Work, entries: Any) -> list[bytes]:
    """One after the other; the ids."""
    done = []
    for entry_id, fields in entries:
        await work(fields)
        done.append(entry_id)
    return done


async def run_together(work: Work, entries: Any) -> list[bytes]:
    """All at once; the ids."""
    await asyncio.gather(*(work(fields) for _, fields in entries))
    return [entry_id for entry_id, _ in entries]


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


def entries_of(reply: Any) -> Any:
    """The entries, whether the reply is RESP2's list of pairs or RESP3's map."""
    if not reply:
        return []
    if isinstance(reply, dict):
        found = next(iter(reply.values()))
        return found[0] if found and isinstance(found[0], list) else found
    return reply[0][1]


LOOPS: dict[str, Callable[[str, str, str, Workload], Coroutine[Any, Any, None]]] = {"pipeline": pipeline, "bare": bare}

if __name__ == "__main__":
    uvloop.run(LOOPS[sys.argv[1]](*sys.argv[2:5], WORKLOADS[sys.argv[5]]))
