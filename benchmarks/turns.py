"""What order by key costs: the rate with `key` beside that without, and a million messages that wait for their turns.

    python -m benchmarks.turns --workers 4
    python -m benchmarks.turns --waiting 1000000 --keys 100000

1. Two groups read the same entries, one after the other, with handlers that do nothing: one without `key`, one with.
2. Handlers that never end, with a limit for the group, so that all others wait: the memory of Redis and of the workers,
   the rate at which messages are put into their rows, and the time of one settle among them.
"""

import time
from statistics import median
from typing import Any

import psutil

from benchmarks.tools import Report, arguments, project, say, server
from supervisor.broker.scripts import SETTLE_TURNS
from supervisor.keys import TURNS_CONSUMER, crashes_key, group_turn_key, replay_key, retries_key, turn_key, turns_key
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

STREAM = "turns"
LIMIT_S = 600
MIB = 2**20
HANDLER = """
import asyncio
from supervisor import Message, handler

@handler("turns", group="{group}"{options})
async def handle(message: Message) -> None:
    {work}
"""
SETTLES = 500
#: Messages that run while the others wait.
RUNNING = 100


def fill(client: Any, messages: int, keys: int) -> None:
    """Publish the messages, the keys in turn."""
    for first in range(0, messages, 10_000):
        pipe = client.pipeline(transaction=False)
        for number in range(first, min(messages, first + 10_000)):
            pipe.xadd(STREAM, {"customer_id": number % keys, "event_type": "changed", "total": "12.50"})
        pipe.execute()


def drained(running: RedisServer, group: str, options: str, workers: int, messages: int) -> float:
    """Return how many messages a second a pool handles."""
    code = HANDLER.format(group=group, options=options, work="pass")
    with running.sync() as client, project(code, redis_url=running.url, workers=workers) as pool:
        began_s = time.monotonic()
        pool.start()

        def done() -> bool:
            (row,) = [row for row in client.xinfo_groups(STREAM) if row["name"].decode() == group]
            return row["pending"] == 0 and row["last-delivered-id"] == client.xinfo_stream(STREAM)["last-generated-id"]

        eventually(lambda: client.xinfo_groups(STREAM)[-1]["last-delivered-id"] != b"0-0", LIMIT_S, 0.001)
        began_s = time.monotonic()
        eventually(done, LIMIT_S, 0.01)
        return messages / (time.monotonic() - began_s)


def rates(running: RedisServer, messages: int, keys: int, workers: int, rounds: int) -> tuple[float, float]:
    """Return the rates without and with a key, the median of pairs."""
    plain, keyed = [], []
    for turn in range(rounds):
        with running.sync() as client:
            client.flushdb()
            fill(client, messages, keys)
            for found, group, options in ((plain, "plain", ""), (keyed, "keyed", ', key="customer_id"')):
                client.xgroup_create(STREAM, group, "0")
                found.append(drained(running, group, options, workers, messages))
                client.xgroup_destroy(STREAM, group)
        say(f"  turn {turn + 1} of {rounds}: {plain[-1]:,.0f}/s without a key, {keyed[-1]:,.0f}/s with")
    return median(plain), median(keyed)


def settle_us(client: Any) -> float:
    """Return the time of one settle, round trip included, among the messages that wait."""
    group_row = group_turn_key(STREAM, "held")
    keys = (STREAM, replay_key(STREAM, "held"), turns_key(STREAM, "held"), group_row)
    hashes = (retries_key(STREAM, "held"), crashes_key(STREAM, "held"))
    sha = client.script_load(SETTLE_TURNS.text)
    took = []
    for _ in range(SETTLES):
        (member,) = client.zrangebyscore(group_row, "-inf", "(0", start=0, num=1)
        ms, _, sequence = member.partition(b"-")
        entry = ms + b"-" + sequence[1:]
        ((_, fields),) = client.xrange(STREAM, entry, entry)
        row = turn_key(STREAM, "held", fields[b"customer_id"].decode())
        arguments = ("held", "probe", 1, RUNNING, 1, entry, 7)
        began_s = time.perf_counter()
        client.evalsha(sha, 7, *keys, *hashes, row, *arguments)
        took.append(time.perf_counter() - began_s)
    return median(took) * 1e6


def waiting(running: RedisServer, messages: int, keys: int, workers: int) -> list[list[object]]:
    """Return the figures for this number of waiting messages."""
    options = f', key="customer_id", group_concurrency={RUNNING}, timeout_s=7200'
    code = HANDLER.format(group="held", options=options, work="await asyncio.sleep(3600)")
    with running.sync() as client:
        client.flushdb()
        fill(client, messages, keys)
        client.xgroup_create(STREAM, "held", "0")
        before = client.info("memory")["used_memory"]
        with project(code, redis_url=running.url, workers=workers) as pool:
            pool.start()
            began_s = time.monotonic()

            def held() -> int:
                rows = client.xinfo_consumers(STREAM, "held")
                return sum(row["pending"] for row in rows if row["name"].decode() == TURNS_CONSUMER)

            eventually(lambda: held() >= messages - RUNNING, LIMIT_S, 0.1)
            took_s = time.monotonic() - began_s
            used = client.info("memory")["used_memory"] - before
            sizes = [psutil.Process(pid).memory_info().rss / MIB for pid in pool.pids().values()]
            settle = settle_us(client)
    return [
        ["messages that wait", messages - RUNNING],
        ["put into their rows, per second", round(messages / took_s)],
        ["Redis: bytes for each, beside its entry", round(used / messages)],
        ["largest worker, MiB", max(sizes)],
        ["one settle, us", settle],
    ]


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=3)
    parser.add_argument("--messages", type=int, default=200_000, help="for the rates (default: 200000)")
    parser.add_argument("--waiting", type=int, default=1_000_000, help="that wait (default: 1000000; 0: skip)")
    parser.add_argument("--keys", type=int, default=100_000, help="of those that wait (default: 100000)")
    parser.add_argument("--workers", type=int, default=4, help="default: 4")
    options = parser.parse_args()
    report = Report(f"Order by key, {options.workers} workers", ("", "value"))
    with server(options) as running:
        report.measured_on(running)
        if options.messages:
            plain, keyed = rates(running, options.messages, 20_000, options.workers, options.rounds)
            report.row("without a key, per second", round(plain))
            report.row("with a key of 20,000, per second", round(keyed))
            report.row("ratio", keyed / plain)
        if options.waiting:
            for row in waiting(running, options.waiting, options.keys, options.workers):
                report.row(*row)
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
