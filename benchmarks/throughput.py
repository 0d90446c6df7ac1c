"""How many messages a second one worker process drains, beside loops without a pool, in one run.

All drain the same backlog, each through a consumer group of its own, one after the other in several
rounds. The rate is taken between 90 % and 10 % of the backlog left, so neither start-up nor the last
acks count. A message is done when it is acked.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import redis as redis_py

from benchmarks.peers import PEERS
from benchmarks.tools import STREAM, Report, arguments, median, project, say, server
from tests.support.servers import RedisServer

HANDLER = """
from supervisor import Message, handler

@handler({stream!r}, group={group!r})
async def handle(message: {annotation}) -> None:
    pass
"""
#: Name of the row -> the annotation of the handler's parameter.
POOLS = {"pool, Message": "Message", "pool, dict": "dict[str, str]"}
PLAIN = "redis-py pipeline loop"
PEER_ROWS = {PLAIN: "pipeline", "the same, fields as str": "decoded", "bare connection, two in flight": "bare"}
POLL_S = 0.01
ROUND_LIMIT_S = 300.0


def fill(client: redis_py.Redis, entries: int) -> None:
    """Publish the backlog: four fields, about 100 bytes."""
    with client.pipeline(transaction=False) as pipe:
        for number in range(entries):
            pipe.xadd(
                STREAM,
                {
                    "event_type": "user_created",
                    "user_id": str(number),
                    "email": f"user{number}@example.com",
                    "timestamp": "2026-01-01T00:00:00Z",
                },
            )
            if number % 1000 == 999:
                pipe.execute()
        pipe.execute()


class Drain:
    """Watches one group drain the backlog."""

    def __init__(self, client: redis_py.Redis, group: str, entries: int) -> None:
        self._client = client
        self._group = group.encode()
        self._entries = entries

    def rate(self, alive: Callable[[], bool]) -> float:
        """Messages a second between 90 % and 10 % left. Raises RuntimeError when the process leaves before that."""
        marks: list[float] = []
        before = (time.perf_counter(), 0)
        for share in (0.1, 0.9):
            target = self._entries * share
            until = time.monotonic() + ROUND_LIMIT_S
            while (now := (time.perf_counter(), self._done()))[1] < target:
                if time.monotonic() > until or (not alive() and self._done() < target):
                    raise RuntimeError(f"{self._group.decode()} stopped at {now[1]} of {self._entries}")
                before = now
                time.sleep(POLL_S)
            # Between two looks the count is taken to grow evenly.
            part = (target - before[1]) / max(1, now[1] - before[1])
            marks.append(before[0] + part * (now[0] - before[0]))
        return 0.8 * self._entries / (marks[1] - marks[0])

    def wait_end(self) -> None:
        """Wait until all is acked."""
        until = time.monotonic() + ROUND_LIMIT_S
        while self._done() < self._entries:
            if time.monotonic() > until:
                raise RuntimeError(f"{self._group.decode()} left {self._entries - self._done()} messages")
            time.sleep(POLL_S)

    def _done(self) -> int:
        try:
            groups = self._client.xinfo_groups(STREAM)
        except redis_py.ResponseError:
            return 0
        for group in groups:
            if group["name"] == self._group:
                return int(group["entries-read"] or 0) - int(group["pending"])
        return 0


def run_peer(name: str, running: RedisServer, client: redis_py.Redis, group: str, entries: int) -> float:
    """One round of a loop without a pool."""
    client.xgroup_create(STREAM, group, id="0")
    words = [sys.executable, "-m", "benchmarks.peers", PEER_ROWS[name], running.url, STREAM, group]
    with subprocess.Popen(words) as process:
        drain = Drain(client, group, entries)
        try:
            rate = drain.rate(lambda: process.poll() is None)
            drain.wait_end()
        finally:
            process.terminate()
    return rate


def run_pool(name: str, running: RedisServer, client: redis_py.Redis, group: str, entries: int) -> float:
    """One round of `supervisor start --workers 1`."""
    text = HANDLER.format(stream=STREAM, group=group, annotation=POOLS[name])
    with project(text, redis_url=running.url, workers=1) as pool:
        pool.start(ready=False)
        drain = Drain(client, group, entries)
        try:
            rate = drain.rate(lambda: pool.exit_code() is None)
            drain.wait_end()
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{pool.output[-3000:]}") from None
    return rate


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=5)
    parser.add_argument("--entries", type=int, default=500_000, help="size of the backlog (default: 500000)")
    parser.add_argument("--only", choices=("peers", "pool", "all"), default="all", help="measure a part (default: all)")
    options = parser.parse_args()
    chosen = {"peers": [*PEER_ROWS], "pool": [PLAIN, *POOLS], "all": [*PEER_ROWS, *POOLS]}[options.only]
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    report = Report(
        f"Throughput of one worker process, no-op handler, {options.entries:,} messages, {options.rounds} rounds",
        ("", "messages/s (median)", "lowest", "highest", "ratio"),
    )
    with server(options) as running, running.sync() as client:
        report.measured_on(running)
        say(f"publishing {options.entries:,} messages ...")
        fill(client, options.entries)
        for number in range(options.rounds):
            for name in chosen:
                group = f"{PEER_ROWS.get(name, 'pool')}-{number}-{len(name)}"
                run = run_peer if name in PEER_ROWS else run_pool
                rates[name].append(run(name, running, client, group, options.entries))
                client.xgroup_destroy(STREAM, group)
                say(f"round {number + 1}: {name}: {rates[name][-1]:,.0f}/s")
    base = median(rates[PLAIN])
    for name, found in rates.items():
        report.row(name, median(found), min(found), max(found), median(found) / base)
    report.notes.append(f"ratio: the median beside that of the {PLAIN}.")
    report.show(as_json=options.json)


if __name__ == "__main__":
    assert set(PEER_ROWS.values()) == set(PEERS)
    main()
