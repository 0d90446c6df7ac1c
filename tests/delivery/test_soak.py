"""Case 30 at a small volume: a pool at work while clocks jump, workers are recycled and clients come and go."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from tests.delivery.case import HOST, STREAM, Case
from tests.support.faults import footprint
from tests.support.stepped_clock import SteppedClock
from tests.support.waiting import eventually

StartCase = Callable[..., Case]
MEGABYTE = 1_000_000
TAILS = 10
#: Caches and pools are full by then.
WARM_S = 4.0
BODY = """
@handler("events", group="workers", retry_base_s=0.2)
async def handle(message: Message) -> None:
    with run(message):
        if int(message.fields["n"]) % 100 == 0 and message.deliveries == 1:
            raise ValueError("once")
        await asyncio.sleep(0.002)
"""
TAIL = f"/v1/streams/{STREAM}/tail"


@contextlib.contextmanager
def tails(case: Case, count: int) -> Iterator[None]:
    """Clients that follow the stream and hardly ever read: what they do not read waits in sockets."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            answer = stack.enter_context(stack.enter_context(browser(case)).stream("GET", TAIL))
            assert answer.status_code == 200
        yield


def standing(case: Case) -> dict[str, psutil.Process]:
    """The processes that stay: the arbiter and its services."""
    services = case.pool.ask("status")["services"]
    found = {service["name"]: psutil.Process(service["pid"]) for service in services}
    return {"arbiter": psutil.Process(case.pool.pid), **found}


def private_mb(process: psutil.Process) -> float:
    return float(process.memory_full_info().uss / MEGABYTE)


class Standing:
    """The resources of the processes that stay, after the warm-up and now."""

    def __init__(self, case: Case, http: httpx.Client) -> None:
        self._case, self._http = case, http
        self._processes = standing(case)
        self._began_s = time.monotonic()
        self._before = {name: (footprint(found.pid), private_mb(found)) for name, found in self._processes.items()}
        # asyncio starts another thread for a call that finds none idle, up to the size of its default executor.
        api, api_mb = self._before["api"]
        self._before["api"] = replace(api, threads=1 + min(32, (os.cpu_count() or 1) + 4)), api_mb
        # A busy service leaves out of its answer what it could not get in time.
        eventually(lambda: any(name.startswith("supervisor_stream_lag") for name in self._series()), 20, 0.2)
        self._known: list[set[str]] = [self._series()]
        self._times_ms: list[float] = []

    def look(self) -> None:
        """Ask the service once more, and see that no consumer is left behind."""
        began_s = time.monotonic()
        self._known.append(self._series())
        self._times_ms.append((time.monotonic() - began_s) * 1000)
        assert set(self._case.pending()) == {f"{HOST}:{slot}" for slot in range(self._case.setting.workers)}

    def check(self) -> None:
        """Check that nothing has grown, and that they are the same processes."""
        case, took_s = self._case, time.monotonic() - self._began_s
        assert {name: found.pid for name, found in standing(case).items()} == {
            name: found.pid for name, found in self._processes.items()
        }
        for name, (was, was_mb) in self._before.items():
            more = was.grown(footprint(was.pid))
            eventually(lambda was=was: not was.grown(footprint(was.pid)), 30, what=f"the {name} has {more}")
            case.check(f"growth of the {name} in {took_s:.0f} s", private_mb(self._processes[name]) - was_mb, 4, "MB")
        half = len(self._known) // 2
        more = set().union(*self._known[half:]) - set().union(*self._known[:half])
        # An age and a state come and go; one a worker's incarnation would be several times as many.
        case.check("series in /metrics that the first half did not have", len(more), 5, "")
        # By itself it takes 3 ms; here it shares its loop with 2,000 events a second.
        case.figure("GET /metrics, lower quartile", statistics.quantiles(self._times_ms, n=4)[0], "ms")

    def _series(self) -> set[str]:
        answer = self._http.get("/metrics")
        assert answer.status_code == 200
        return {line.rpartition(" ")[0] for line in answer.text.splitlines() if not line.startswith("#")}


def browser(case: Case) -> httpx.Client:
    return httpx.Client(base_url=case.pool.base_url, timeout=10, trust_env=False, verify=False)


@pytest.mark.long
def test_30_soak(make_case: StartCase, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    clock = SteppedClock(tmp_path)
    # Each worker is replaced about every two seconds. Ten clients get all that is published.
    case = make_case(body=BODY, pool="recycle_messages = 80", rate=200.0, api=True, env=clock.environment)
    case.load_s = pytestconfig.getoption("soak_s")
    case.start_pool()
    with browser(case) as http, tails(case, TAILS):
        case.start_load()
        for _ in range(3):  # now it has its threads
            http.get("/metrics")
        case.until(WARM_S)
        stands, steps = Standing(case, http), [3600, -3600, 0]
        while case.load.elapsed_s < case.load_s - 1:
            case.until(case.load.elapsed_s + 1)
            stands.look()
            if steps and case.load.elapsed_s > case.load_s * (4 - len(steps)) / 5:
                clock.step(steps.pop(0))
        recycled = case.pool.events("recycling worker")
        case.struck(f"{len(recycled)} recycled workers, clocks that jumped", len(recycled) >= 4 and not steps)
        stands.check()
        case.load.join()
        eventually(case.drained, 20, 0.05)
        told_s = time.monotonic()
        assert case.pool.stop() == 0
        case.check(f"SIGTERM with {TAILS} clients that follow", (time.monotonic() - told_s) * 1000, 3000)
    failing = [n for n in case.load.attempts if n % 100 == 0]
    case.finish(repeated_max=len(failing), errors=["handler failed"])
    assert case.drained()
    assert {line["reason"] for line in case.pool.events("worker exited")} == {"drained"}
