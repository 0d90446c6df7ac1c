"""Loops that drain a stream without the pool: `python -m benchmarks.peers NAME URL STREAM GROUP`.

`pipeline` is what a good redis-py user writes: hiredis, uvloop, one `pipeline(transaction=False)` a
batch with XACK and the next XREADGROUP. `bare` drives redis-py's connection by hand with two batches
in flight. Both await an `async def` no-op handler for each entry. They leave when nothing is left.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import Any

import hiredis
import uvloop
from redis.asyncio import Redis
from redis.asyncio.connection import Connection, parse_url

COUNT = 100
#: Its annotation allows tuples of one word only.
pack: Any = hiredis.pack_command


async def handle(fields: object) -> None:
    """Do nothing."""


async def pipeline(url: str, stream: str, group: str, *, text: bool = False) -> None:
    """redis-py's own commands, one pipeline a batch; with `text`, ids and fields as str."""
    done: list[bytes] = []
    async with Redis.from_url(url, decode_responses=text) as redis:
        while True:
            async with redis.pipeline(transaction=False) as pipe:
                if done:
                    pipe.xack(stream, group, *done)
                pipe.xreadgroup(group, "peer", {stream: ">"}, count=COUNT)
                reply = (await pipe.execute())[-1]
            entries = _entries(reply)
            if not entries:
                return
            done = []
            for entry_id, fields in entries:
                await handle(fields)
                done.append(entry_id)


async def decoded(url: str, stream: str, group: str) -> None:
    """The same with `decode_responses=True`, for handlers that get their fields as str."""
    await pipeline(url, stream, group, text=True)


async def bare(url: str, stream: str, group: str) -> None:
    """redis-py's connection, commands packed by hiredis, the next read sent before the present batch is handled."""
    options: dict[str, Any] = dict(parse_url(url))
    kind = options.pop("connection_class", Connection)
    connection: Any = kind(**options, protocol=2)
    await connection.connect()
    read = pack(("XREADGROUP", "GROUP", group, "peer", "COUNT", COUNT, "STREAMS", stream, ">"))
    await connection.send_packed_command(read, check_health=False)
    await connection.send_packed_command(read, check_health=False)
    waiting_for = ["read", "read"]
    while waiting_for:
        what = waiting_for.pop(0)
        reply = await connection.read_response(disable_decoding=True)
        if what == "ack" or not reply:
            continue
        done = []
        for entry_id, fields in reply[0][1]:
            await handle(fields)
            done.append(entry_id)
        ack = pack(("XACK", stream, group, *done))
        await connection.send_packed_command(ack + read, check_health=False)
        waiting_for += ["ack", "read"]
    await connection.disconnect()


def _entries(reply: Any) -> Any:
    """The entries, whether the reply is RESP2's list of pairs or RESP3's map."""
    if not reply:
        return []
    if isinstance(reply, dict):
        found = next(iter(reply.values()))
        return found[0] if found and isinstance(found[0], list) else found
    return reply[0][1]


PEERS: dict[str, Callable[[str, str, str], Coroutine[Any, Any, None]]] = {
    "pipeline": pipeline,
    "decoded": decoded,
    "bare": bare,
}

if __name__ == "__main__":
    uvloop.run(PEERS[sys.argv[1]](*sys.argv[2:5]))
