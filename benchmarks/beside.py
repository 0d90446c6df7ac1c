"""Single publishes over HTTP beside large batches: the latency of the small ones, alone and beside them.

One client sends batches one after the other; small publishes arrive at a fixed rate. A latency counts from when its
request was due, so one that waits behind a stalled service can't hide. Client, service and Redis share the machine.
"""

import http.client
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import orjson
import uvloop
from redis import Redis

from benchmarks.http_load import Load, post_at
from benchmarks.producer import EVENT, JSON, MESSAGES, STREAM, api, checked
from benchmarks.repeated import repeated
from benchmarks.tools import Report, arguments, say, server

#: Batches that are sent before anything is measured.
_WARM_UP = 2


@dataclass
class Batches:
    """Sends a batch again and again until it is stopped. The stream is emptied after each one."""

    base: str
    redis: Redis
    body: bytes
    headers: dict[str, str]
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)

    def send(self, client: http.client.HTTPConnection) -> None:
        """Send it once."""
        headers = dict(self.headers)
        if "Idempotency-Key" in headers:
            headers["Idempotency-Key"] = f'"{len(self.latencies_ms)}-{time.time_ns()}"'
        began_s = time.perf_counter()
        client.request("POST", f"{MESSAGES}:batch", self.body, headers)
        answer = client.getresponse()
        answer.read()
        self.latencies_ms.append((time.perf_counter() - began_s) * 1000)
        self.statuses[answer.status] += 1
        self.redis.unlink(STREAM)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send it in a thread, without a pause."""
        with closing(self.connect()) as client, repeated(lambda: self.send(client)):
            yield

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the service."""
        parts = urlsplit(self.base)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)


def batches(base: str, redis: Redis, count: int, size: int, *, keyed: bool, lines: bool) -> Batches:
    """Batches of `count` messages of about `size` bytes."""
    messages = [{"number": str(number), "data": "x" * size} for number in range(count)]
    headers = dict(JSON)
    body = orjson.dumps(messages)
    if lines:
        headers["Content-Type"] = "application/x-ndjson"
        body = b"\n".join(map(orjson.dumps, messages))
    if keyed:
        headers["Idempotency-Key"] = ""
    return Batches(base, redis, body, headers)


def small(base: str, rate: float, seconds: float, connections: int) -> Load:
    """The small publishes."""
    url = base + MESSAGES
    return checked(uvloop.run(post_at(url, EVENT, connections=connections, seconds=seconds, rate=rate)), url)


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=1)
    parser.add_argument("--messages", type=int, default=10_000, help="in a batch (default: 10,000)")
    parser.add_argument("--bytes", type=int, default=1_500, help="of a message (default: 1,500)")
    parser.add_argument("--keyed", action="store_true", help="send each batch with an Idempotency-Key")
    parser.add_argument("--lines", action="store_true", help="send each batch as NDJSON")
    parser.add_argument("--rate", type=float, default=100.0, help="small publishes a second (default: 100)")
    parser.add_argument("--connections", type=int, default=16, help="of the small publishes (default: 16)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load (default: 15)")
    options = parser.parse_args()
    kind = f"{options.messages:,} × {options.bytes:,} B" + ", keyed" * options.keyed + ", NDJSON" * options.lines
    report = Report(
        f"Small publishes beside batches of {kind}, {options.rate:g}/s",
        ("", "publishes", "p50 ms", "p99 ms", "max ms", "batches", "batch p50 ms", "batch max ms"),
    )
    with server(options) as running:
        report.measured_on(running)
        with api(running) as service, running.sync() as redis:
            sender = batches(
                service.base, redis, options.messages, options.bytes, keyed=options.keyed, lines=options.lines
            )
            for _ in range(_WARM_UP):
                sender.send(sender.connect())
            for number in range(options.rounds):
                redis.flushdb()
                alone = small(service.base, options.rate, options.seconds, options.connections)
                sender.latencies_ms.clear()
                sender.statuses.clear()
                with sender.running():
                    beside = small(service.base, options.rate, options.seconds, options.connections)
                say(f"round {number}: batches {dict(sender.statuses)}")
                report.row("alone", *_cells(alone.latencies_ms), 0, "", "")
                found = sorted(sender.latencies_ms)
                report.row("beside", *_cells(beside.latencies_ms), len(found), found[len(found) // 2], found[-1])
    report.show(as_json=options.json)


def _cells(latencies_ms: list[float]) -> tuple[int, float, float, float]:
    found = sorted(latencies_ms)
    return len(found), found[len(found) // 2], found[int(len(found) * 0.99)], found[-1]


if __name__ == "__main__":
    main()
