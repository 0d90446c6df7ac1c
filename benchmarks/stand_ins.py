"""Process families to compare with: `python -m benchmarks.stand_ins fork|spawn|loops N`.

The parent prints the pids of its children when all are ready, and ends them when stdin says so. It
imports nothing of the benchmarks, which would count as the children's memory.
"""

import os
import subprocess
import sys

#: As a handler's `block_ms`.
BLOCK_MS = 5_000


def stand_in(kind: str, workers: int) -> None:
    """Be the parent of `workers` children of that kind until stdin says to end."""
    reader, writer = os.pipe()
    children: list[int] = []
    if kind == "fork":
        import_worker()
        for _ in range(workers):
            pid = os.fork()
            if pid == 0:
                os.close(0)
                os.close(reader)
                child(writer)
            children.append(pid)
    else:
        function = {"spawn": "child", "loops": "reader"}[kind]
        text = f"from benchmarks.stand_ins import {function}; {function}({writer})"
        spawned = [subprocess.Popen([sys.executable, "-c", text], pass_fds=[writer]) for _ in range(workers)]
        children = [process.pid for process in spawned]
    os.close(writer)
    ready = 0
    while ready < workers:
        answered = os.read(reader, workers)
        if not answered:
            sys.exit("a child died before it was ready")
        ready += len(answered)
    print(*children, flush=True)
    sys.stdin.readline()
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def import_worker() -> None:
    """What a worker has imported."""
    import supervisor.handling.loader
    import supervisor.worker.process  # noqa: F401


def child(writer: int) -> None:
    """A loop, one answer from Redis, then wait to be killed."""
    import_worker()
    import asyncio

    import uvloop

    from supervisor.broker.connect import client

    async def live() -> None:
        await client(os.environ["STAND_IN_URL"]).ping()
        os.write(writer, b"r")
        await asyncio.Event().wait()

    uvloop.run(live())


def reader(writer: int) -> None:
    """A user's own loop on redis-py: uvloop, hiredis, blocking reads of a group."""
    import asyncio
    import contextlib

    import uvloop
    from redis.asyncio import Redis
    from redis.exceptions import ResponseError

    async def read() -> None:
        stream, group = "stand-in", "stand-in"
        async with Redis.from_url(os.environ["STAND_IN_URL"], socket_timeout=None) as redis:
            with contextlib.suppress(ResponseError):  # another one was first
                await redis.xgroup_create(stream, group, mkstream=True)
            asyncio.get_running_loop().call_later(0.1, os.write, writer, b"r")
            while True:
                await redis.xreadgroup(group, str(os.getpid()), {stream: ">"}, count=100, block=BLOCK_MS)

    uvloop.run(read())


if __name__ == "__main__":
    stand_in(sys.argv[1], int(sys.argv[2]))
