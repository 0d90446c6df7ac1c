"""What order by key costs: the rate with `key` beside that without, and a million messages that wait for their turns.

    python -m benchmarks.turns
    python -m benchmarks.turns --messages 0 --waiting 1000000 --keys 100000

1. Two groups read the same entries, one after the other, with handlers that do nothing: one without `key`, one with.
   They take turns, A B B A, with one worker and with two. The ratio is that of neighbours.
2. Handlers that never end, with a limit for the group, so that all others wait: the memory of Redis and of the workers,
   the rate at which messages are put into their rows, and the time of one settle among them.
"""

import time
from statistics import median
from typing import Any, NamedTuple

import psutil

from benchmarks.contestants import cpu_s
from benchmarks.tools import Report, arguments, project, say, server
from supervisor.broker.scripts import SETTLE_TURNS
from supervisor.keys import TURNS_CONSUMER, crashes_key, group_turn_key, replay_key, retries_key, turn_field, turns_key
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


class Drain(NamedTuple):
    """How a group was drained."""

    rate: float
    #: CPU us a message, of the server and of all workers.
    server_us: float
    workers_us: float


def drained(running: RedisServer, group: str, options: str, workers: int, messages: int) -> Drain:
    """Have a pool handle all messages."""
    code = HANDLER.format(group=group, options=options, work="pass")
    with running.sync() as client, project(code, redis_url=running.url, workers=workers) as pool:
        client.xgroup_create(STREAM, group, "0")
        last = client.xinfo_stream(STREAM)["last-generated-id"]

        def row() -> dict[str, Any]:
            return next(row for row in client.xinfo_groups(STREAM) if row["name"].decode() == group)

        def done() -> bool:
            found = row()
            return bool(found["pending"] == 0 and found["last-delivered-id"] == last)

        pool.start(ready=False)
        eventually(lambda: row()["last-delivered-id"] != b"0-0", LIMIT_S, 0.001)
        pids = list(pool.pids().values())
        began_s, server_s, workers_s = time.monotonic(), cpu_s(running.pid), sum(map(cpu_s, pids))
        left = messages - row()["entries-read"]
        eventually(done, LIMIT_S, 0.005)
        took_s = time.monotonic() - began_s
        server_us = (cpu_s(running.pid) - server_s) / left * 1e6
        workers_us = (sum(map(cpu_s, pids)) - workers_s) / left * 1e6
        client.xgroup_destroy(STREAM, group)
        for key in client.scan_iter("supervisor:{*"):
            client.delete(key)
    return Drain(left / took_s, server_us, workers_us)


def drains(running: RedisServer, messages: int, workers: int, rounds: int) -> list[tuple[Drain, Drain]]:
    """Return pairs, without and with a key."""
    pairs = []
    for turn in range(rounds):
        found: dict[str, Drain] = {}
        cases = {"plain": "", "keyed": ', key="customer_id"'}
        for group in sorted(cases, reverse=turn % 2 == 0):
            found[group] = drained(running, group, cases[group], workers, messages)
        plain, keyed = found["plain"], found["keyed"]
        pairs.append((plain, keyed))
        say(f"  {workers} workers, turn {turn + 1}: {plain.rate:,.0f}/s without a key, {keyed.rate:,.0f}/s with")
    return pairs


def compare(report: Report, workers: int, pairs: list[tuple[Drain, Drain]]) -> None:
    """Add the rows of this number of workers."""
    of = f"{workers} worker{'s' if workers > 1 else ''}"

    def row(what: str, values: list[float]) -> None:
        report.row(f"{of}: {what}", median(values), min(values), max(values))

    row("without a key, per second", [plain.rate for plain, _ in pairs])
    row("with a key, per second", [keyed.rate for _, keyed in pairs])
    row("ratio", [keyed.rate / plain.rate for plain, keyed in pairs])
    for at, name in enumerate(("without a key", "with a key")):
        row(f"CPU of the server, us a message, {name}", [pair[at].server_us for pair in pairs])
        row(f"CPU of the workers, us a message, {name}", [pair[at].workers_us for pair in pairs])


def settle_us(client: Any) -> float:
    """Return the time of one settle, round trip included, among the messages that wait."""
    group_row = group_turn_key(STREAM, "held")
    keys = (STREAM, replay_key(STREAM, "held"), turns_key(STREAM, "held"), group_row)
    keys += (retries_key(STREAM, "held"), crashes_key(STREAM, "held"))
    sha = client.script_load(SETTLE_TURNS.text)
    took = []
    for _ in range(SETTLES):
        (member,) = client.zrangebyscore(group_row, "-inf", "(0", start=0, num=1)
        ms, _, sequence = member.partition(b"-")
        entry = ms + b"-" + sequence[1:]
        ((_, fields),) = client.xrange(STREAM, entry, entry)
        arguments = ("held", "probe", 1, RUNNING, 1, entry, turn_field(fields[b"customer_id"]))
        began_s = time.perf_counter()
        client.evalsha(sha, len(keys), *keys, *arguments)
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
        ["messages that wait", messages - RUNNING, "", ""],
        ["put into their rows, per second", round(messages / took_s), "", ""],
        ["Redis: bytes for each, beside its entry", round(used / messages), "", ""],
        ["largest worker, MiB", max(sizes), "", ""],
        ["one settle, us", settle, "", ""],
    ]


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=5)
    parser.add_argument("--messages", type=int, default=400_000, help="for the rates (default: 400000; 0: skip)")
    parser.add_argument(
        "--waiting", type=int, default=0, help="also measure this number of waiting messages (default: 0)"
    )
    parser.add_argument("--keys", type=int, default=20_000, help="of the messages, in turn (default: 20000)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    options = parser.parse_args()
    report = Report(f"Order by key: {options.keys:,} keys, {options.rounds} turns", ("", "median", "min", "max"))
    with server(options) as running:
        report.measured_on(running)
        if options.messages:
            with running.sync() as client:
                fill(client, options.messages, options.keys)
            for workers in options.workers:
                compare(report, workers, drains(running, options.messages, workers, options.rounds))
        if options.waiting:
            for row in waiting(running, options.waiting, options.keys, max(options.workers)):
                report.row(*row)
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
