"""Requests a second that the API stores, beside FastAPI with one awaited XADD a request, in one run.

One server process at a time, N keep-alive connections, a small JSON body that pydantic validates.
Client and Redis run on the same machine, so the ratios say more than the rates.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import orjson
import uvloop

from benchmarks.http_load import Load, post
from benchmarks.tools import Report, arguments, median, project, say, server
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import eventually

USER = orjson.dumps({"email": "ada@example.com"})
EVENT = orjson.dumps({"fields": {"user_id": "1", "email": "ada@example.com"}})
XADD = "FastAPI, one XADD awaited a request"
#: Row -> who serves it, path, body.
CASES = {
    "FastAPI without Redis": ("peer", "/bare", USER),
    XADD: ("peer", "/xadd", USER),
    "api: POST /v1/streams/{stream}/messages": ("api", "/v1/streams/events:user_created/messages", EVENT),
    "api: POST /users (record and event)": ("api", "/users", USER),
}
SHIPPED = Path(__file__).parents[1] / "handlers"


@contextmanager
def peer(running: RedisServer) -> Iterator[str]:
    """A plain FastAPI app under uvicorn, set up as the API is."""
    port = free_port()
    words = [sys.executable, "-m", "uvicorn", "benchmarks.http_peers:app", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    with subprocess.Popen(words, env=os.environ | {"PEER_URL": running.url}) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def api(running: RedisServer) -> Iterator[str]:
    """The API service of a pool without workers, with the router of the shipped handlers."""
    routers = '[api]\nrouters = ["handlers.http:router"]\n'
    with project("", redis_url=running.url, workers=0, api=True, config=routers) as pool:
        shutil.copytree(SHIPPED, pool.folder / "handlers")  # a package comes before the module handlers.py
        pool.start(ready=False)
        yield pool.base_url


def measure(running: RedisServer, who: str, path: str, body: bytes, connections: int, seconds: float) -> Load:
    """One round of one case; all answers must be 2xx."""
    with running.sync() as client:
        client.flushdb()
    with {"peer": peer, "api": api}[who](running) as base:
        answer = eventually(
            lambda: httpx.post(base + path, content=body, headers={"Content-Type": "application/json"}), 30
        )
        if not answer.is_success:
            raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")
        load = uvloop.run(post(base + path, body, connections=connections, seconds=seconds))
    if any(status >= 300 for status in load.statuses):
        raise RuntimeError(f"{path}: statuses {load.statuses}")
    return load


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=3)
    parser.add_argument("--connections", type=int, default=32, help="keep-alive connections (default: 32)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: 3)")
    parser.add_argument("--only", choices=("peer", "api", "all"), default="all", help="measure a part (default: all)")
    options = parser.parse_args()
    cases = {name: case for name, case in CASES.items() if options.only in ("all", case[0]) or name == XADD}
    found: dict[str, list[Load]] = {name: [] for name in cases}
    report = Report(
        f"HTTP producer, {options.connections} connections, {options.rounds} rounds of {options.seconds:g} s",
        ("", "requests/s (median)", "lowest", "highest", "p50 ms", "p99 ms", "ratio"),
    )
    with server(options) as running:
        report.measured_on(running)
        for number in range(options.rounds):
            for name, case in cases.items():
                found[name].append(measure(running, *case, options.connections, options.seconds))
                say(f"round {number + 1}: {name}: {found[name][-1].rate:,.0f}/s")
    base = median([load.rate for load in found[XADD]])
    for name, loads in found.items():
        rates = [load.rate for load in loads]
        latencies = [median([load.percentile_ms(share) for load in loads]) for share in (0.5, 0.99)]
        report.row(name, median(rates), min(rates), max(rates), *latencies, median(rates) / base)
    report.notes.append(f"ratio: the median beside that of {XADD}.")
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
