"""Publishes over HTTP beside FastAPI: a bare route without Redis, and a route with one awaited XADD.

Both servers run all the time and take turns, so that each turn is compared with its neighbour. A turn is a load of N
keep-alive connections as fast as the server answers, then one at half the rate that the bare route had. Client, server
and Redis run on the same machine, so the ratios say more than the rates.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
import psutil
import uvloop

from benchmarks.http_load import Load, post, post_at
from benchmarks.tools import Report, arguments, median, project, say, server
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import eventually

#: Messages in one request of the batch.
BATCH = 100
JSON = {"Content-Type": "application/json"}
USER = orjson.dumps({"email": "ada@example.com"})
EVENT = orjson.dumps({"fields": {"user_id": "1", "email": "ada@example.com"}})
EVENTS = orjson.dumps([{"user_id": str(number), "email": "ada@example.com"} for number in range(BATCH)])
STREAM = "events:user_created"
MESSAGES = f"/v1/streams/{STREAM}/messages"
SHIPPED = Path(__file__).parents[1] / "handlers"


@dataclass(frozen=True)
class Case:
    """One route."""

    title: str
    #: peer: the plain FastAPI app; api: our service.
    who: str
    path: str
    body: bytes
    #: Messages in one request.
    messages: int = 1


BARE = Case("FastAPI without Redis", "peer", "/bare", USER)
CASES = (
    BARE,
    Case("FastAPI, one XADD awaited a request", "peer", "/xadd", USER),
    Case(f"api: POST {MESSAGES}", "api", MESSAGES, EVENT),
    Case(f"api: POST {MESSAGES}:batch, {BATCH} each", "api", f"{MESSAGES}:batch", EVENTS, BATCH),
    Case("api: POST /users (record and event)", "api", "/users", USER),
)


@dataclass
class Turn:
    """What one turn of one case gave, in messages."""

    rate: float
    cpu_us: float
    #: At half of the rate that the bare route had in this round.
    p50_ms: float
    p99_ms: float


@dataclass
class Server:
    """A server that runs during all turns."""

    base: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """Seconds of CPU that the process has used."""
        times = self.process.cpu_times()
        return times.user + times.system


@contextmanager
def peer(running: RedisServer) -> Iterator[Server]:
    """A plain FastAPI app under uvicorn, set up as the API is."""
    port = free_port()
    words = [sys.executable, "-m", "uvicorn", "benchmarks.http_peers:app", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    with subprocess.Popen(words, env=os.environ | {"PEER_URL": running.url}) as process:
        try:
            yield Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
        finally:
            process.terminate()


@contextmanager
def api(running: RedisServer) -> Iterator[Server]:
    """The API service of a pool without workers, with the router of the shipped handlers."""
    # On a busy machine an answer may take longer than the default; it is measured, not refused.
    routers = '[api]\nproduce_timeout_ms = 5000\nrouters = ["handlers.http:router"]\n'
    with project("", redis_url=running.url, workers=0, api=True, config=routers) as pool:
        shutil.copytree(SHIPPED, pool.folder / "handlers")  # a package comes before the module handlers.py
        pool.start(ready=False)
        eventually(lambda: httpx.get(f"{pool.base_url}/livez").is_success, 30)
        [pid] = [service["pid"] for service in pool.ask("status")["services"] if service["name"] == "api"]
        yield Server(pool.base_url, psutil.Process(pid))


def checked(load: Load, path: str) -> Load:
    """The load; all answers must be 2xx."""
    if any(status >= 300 for status in load.statuses):
        raise RuntimeError(f"{path}: statuses {load.statuses}")
    return load


def measure(running: RedisServer, server: Server, case: Case, half: float, connections: int, seconds: float) -> Turn:
    """One turn of one case; `half` is the rate of its second load, 0 for half of its own."""
    with running.sync() as client:
        client.flushdb()
    url = server.base + case.path
    eventually(lambda: httpx.post(url, content=case.body, headers=JSON).is_success, 30)
    before_s = server.cpu_s()
    full = checked(uvloop.run(post(url, case.body, connections=connections, seconds=seconds, warm_up_s=0)), url)
    cpu_us = (server.cpu_s() - before_s) / len(full.latencies_ms) / case.messages * 1e6
    rate = half / case.messages if half else full.rate / 2
    paced = checked(uvloop.run(post_at(url, case.body, connections=connections, seconds=seconds, rate=rate)), url)
    return Turn(full.rate * case.messages, cpu_us, paced.percentile_ms(0.5), paced.percentile_ms(0.99))


def rounds(running: RedisServer, count: int, connections: int, seconds: float) -> dict[str, list[Turn]]:
    """The turns of all cases, one round after the other. One more round goes before, which is not counted."""
    found: dict[str, list[Turn]] = {case.title: [] for case in CASES}
    with peer(running) as peer_server, api(running) as api_server:
        servers = {"peer": peer_server, "api": api_server}
        for number in range(count + 1):
            half = 0.0
            for case in CASES:
                turn = measure(running, servers[case.who], case, half, connections, seconds)
                half = half or turn.rate / 2
                if number:
                    found[case.title].append(turn)
                say(f"round {number}: {case.title}: {turn.rate:,.0f}/s, {turn.cpu_us:.1f} µs of CPU")
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=5)
    parser.add_argument("--connections", type=int, default=32, help="keep-alive connections (default: 32)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load (default: 2)")
    options = parser.parse_args()
    report = Report(
        f"HTTP producer, {options.connections} connections, {options.rounds} rounds of {options.seconds:g} s",
        ("", "messages/s", "µs of CPU", "p50 ms", "p99 ms", "rate, ratio", "CPU, ratio", "p99, ratio"),
    )
    with server(options) as running:
        report.measured_on(running)
        found = rounds(running, options.rounds, options.connections, options.seconds)
    bare = found[BARE.title]
    for title, turns in found.items():
        pairs = list(zip(turns, bare, strict=True))
        report.row(
            title,
            median([turn.rate for turn in turns]),
            median([turn.cpu_us for turn in turns]),
            median([turn.p50_ms for turn in turns]),
            median([turn.p99_ms for turn in turns]),
            median([turn.rate / base.rate for turn, base in pairs]),
            median([base.cpu_us / turn.cpu_us for turn, base in pairs]),
            median([turn.p99_ms / base.p99_ms for turn, base in pairs]),
        )
    report.notes.append(f"Medians. A ratio is beside {BARE.title} in the same round; for rate and CPU, more is better.")
    report.notes.append(
        f"p50 and p99 are of a load at half the rate of {BARE.title}, counted from when a request is due."
    )
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
