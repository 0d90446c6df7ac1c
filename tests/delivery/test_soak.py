"""Case 30 in small: a pool at work while clocks jump, workers are recycled and clients come and go."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil

from tests.delivery.case import GROUP, HOST, STREAM, Case
from tests.support.faults import footprint
from tests.support.stepped_clock import SteppedClock
from tests.support.waiting import eventually

StartCase = Callable[..., Case]
MEGABYTE = 1_000_000
TAILS = 20
TAIL = f"/v1/streams/{STREAM}/tail"


@contextlib.contextmanager
def tails(base_url: str, count: int) -> Iterator[list[httpx.Response]]:
    """So many clients that follow the stream, and hardly ever read: what they do not read waits in sockets."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            http = stack.enter_context(httpx.Client(base_url=base_url, timeout=10, trust_env=False, verify=False))
            found.append(stack.enter_context(http.stream("GET", TAIL)))
        yield found


def standing(case: Case) -> dict[str, psutil.Process]:
    """The processes that stay: the arbiter and its services."""
    services = case.pool.ask("status")["services"]
    found = {service["name"]: psutil.Process(service["pid"]) for service in services}
    return {"arbiter": psutil.Process(case.pool.pid), **found}


def private_mb(process: psutil.Process) -> float:
    return float(process.memory_full_info().uss / MEGABYTE)


def test_30_soak(make_case: StartCase, tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    case = make_case(
        body="""
        @handler("events", group="workers", retry_base_s=0.2)
        async def handle(message: Message) -> None:
            with run(message):
                if int(message.fields["n"]) % 100 == 0 and message.deliveries == 1:
                    raise ValueError("once")
                await asyncio.sleep(0.002)
        """,
        # Each worker is replaced about every two seconds.
        pool="recycle_messages = 400",
        api=True,
        env=clock.environment,
    )
    case.load_s = max(12.0, 2 * case.load_s)
    case.start_pool()
    with (
        httpx.Client(base_url=case.pool.base_url, timeout=10, trust_env=False, verify=False) as http,
        tails(case.pool.base_url, TAILS) as following,
    ):
        assert {answer.status_code for answer in following} == {200}
        case.start_load()
        case.until(4.0)  # caches and pools are full
        processes = standing(case)
        for _ in range(3):  # now it has its threads
            series = len(http.get("/metrics").text.splitlines())
        before = {name: (footprint(process.pid), private_mb(process)) for name, process in processes.items()}
        times_ms, steps = [], [3600, -3600, 0]
        while case.load.elapsed_s < case.load_s - 1:
            case.until(case.load.elapsed_s + 1)
            began_s = time.monotonic()
            assert http.get("/metrics").status_code == 200
            times_ms.append((time.monotonic() - began_s) * 1000)
            if case.load.elapsed_s > case.load_s * (4 - len(steps)) / 5 and steps:
                clock.step(steps.pop(0))
            assert set(case.pending()) == {f"{HOST}:{slot}" for slot in range(case.setting.workers)}
        recycled = case.pool.events("recycling a worker")
        case.struck(f"{len(recycled)} recycled workers, clocks that jumped", len(recycled) >= 4 and not steps)
        assert {process.pid for process in standing(case).values()} == {process.pid for process in processes.values()}
        for name, (was, was_mb) in before.items():
            more = was.grown(footprint(was.pid))
            eventually(lambda was=was: not was.grown(footprint(was.pid)), 5, what=f"the {name} has {more}")
            case.check(
                f"growth of the {name} in {case.load_s - 4:.0f} s", private_mb(processes[name]) - was_mb, 4, "MB"
            )
        case.check("lines of /metrics more than before", len(http.get("/metrics").text.splitlines()) - series, 0, "")
        case.check("GET /metrics, median", statistics.median(times_ms), 100)
        case.load.join()
        eventually(case.drained, 20, 0.05)
        failing = len([n for n in case.load.attempts if n % 100 == 0])
        told_s = time.monotonic()
        assert case.pool.stop() == 0
        case.check(f"SIGTERM with {TAILS} clients that follow", (time.monotonic() - told_s) * 1000, 3000)
    case.finish(repeated_max=failing, errors=["handler failed"])
    assert {line["reason"] for line in case.pool.events("worker left")} == {"drained"}
    assert case.drained(GROUP)
