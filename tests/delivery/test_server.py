"""Cases 19 to 21: a Redis that is killed, away for long, or refuses commands."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from supervisor.shared_state import SlotField
from tests.delivery.case import Case
from tests.support.faults import shared_state_of
from tests.support.refusals import REFUSALS, SERVER_OPTIONS
from tests.support.waiting import eventually

StartCase = Callable[..., Case]
MakeCase = Callable[..., Case]
#: Interval at which a worker logs that Redis is away.
QUIET_S = 5.0
DOWN_S = 10.0
REFUSED_S = 1.5
LIMITS = "[redis]\nconnect_timeout_s = 1.0\n[api]\nproduce_timeout_ms = 200\n"
REFUSED = ("oom", "misconf", "noreplicas", "readonly", "masterdown", "busy", "loading", "too many clients", "password")


def lines_of_workers(case: Case) -> dict[int, int]:
    """Slot -> the lines of level warning and above that its worker wrote."""
    found: dict[int, int] = {}
    for line in case.pool.lines:
        if '"slot": ' in line and '"level": "info"' not in line and line.startswith("{"):
            slot = int(line.partition('"slot": ')[2].partition(",")[0])
            found[slot] = found.get(slot, 0) + 1
    return found


def check_quiet(case: Case, lasted_s: float) -> None:
    most = max(lines_of_workers(case).values(), default=0)
    case.check(f"lines of a worker's log in {lasted_s:.0f} s", most, 1 + lasted_s // QUIET_S, "")


def fetching_again_ms(case: Case, since_ns: int) -> float:
    """From `since_ns` until the last of the workers has had an answer to a read."""
    shared = shared_state_of(case.pool.pid)
    slots = sorted(case.pool.pids())

    def found() -> list[int]:
        times = [shared.slot(slot).get(SlotField.FETCH_NS) for slot in slots]
        return times if min(times) > since_ns else []

    return (max(eventually(found, interval_s=0.005)) - since_ns) / 1e6


def test_19_redis_killed_and_restarted(start_case: StartCase) -> None:
    case = start_case(appendonly=True)
    before = case.pool.pids()
    case.moment()
    case.busy_slot(in_hand=3)
    killed_ns = time.monotonic_ns()
    case.server.kill()
    eventually(lambda: case.load.errors, interval_s=0.001, what="the load has felt it, too")
    case.server.start()
    back_ns = time.monotonic_ns()
    case.struck("Redis was killed", case.redis.info("server")["process_id"], killed_ns)
    case.check("Redis answers until all workers fetch", fetching_again_ms(case, back_ns), 1500)
    assert case.pool.pids() == before and not case.pool.events("worker exited")
    # What was acknowledged was in the server's file, and what is in hand is known to its worker: nothing runs twice.
    case.finish(repeated_max=0, recover_ms=(back_ns - killed_ns) / 1e6 + 2000)
    check_quiet(case, (back_ns - killed_ns) / 1e9)


@pytest.mark.long
def test_20_redis_down(make_case: MakeCase, load_s: float) -> None:
    # A minute was asked for: `--load-s 60` has it.
    down_s = max(DOWN_S, load_s)
    case = make_case(appendonly=True, api=True, load_s=down_s + 6, more=LIMITS).start()
    before = case.pool.pids()
    with httpx.Client(base_url=case.pool.base_url, timeout=5, trust_env=False, verify=False) as http:
        eventually(lambda: http.get("/readyz").status_code == 200)
        case.until(1.0)
        case.server.kill()
        down_ns = time.monotonic_ns()
        eventually(lambda: http.get("/readyz").status_code == 503, interval_s=0.05)
        case.check("Redis is gone until /readyz is 503", (time.monotonic_ns() - down_ns) / 1e6, 2000)
        slowest_ms = 0.0
        while time.monotonic_ns() < down_ns + down_s * 1e9:
            began_s = time.monotonic()
            answer = http.post("/v1/streams/events/messages", json={"n": 1})
            slowest_ms = max(slowest_ms, (time.monotonic() - began_s) * 1000)
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
            assert http.get("/livez").status_code == 200
            case.until(case.load.elapsed_s + 0.25)
        case.check("slowest 503 of a POST", slowest_ms, 250)
        case.server.start()
        back_ns = time.monotonic_ns()
        case.struck("Redis was away", case.load.errors, back_ns)
        case.check("Redis answers until all workers fetch", fetching_again_ms(case, back_ns), 2000)
        eventually(lambda: http.get("/readyz").status_code == 200, 20)
    check_quiet(case, down_s)
    assert case.pool.pids() == before and not case.pool.events("worker exited")
    case.finish(repeated_max=0, recover_ms=2500)


@pytest.mark.long
def test_21_redis_refuses(make_case: MakeCase) -> None:
    case = make_case(
        api=True, server_options=SERVER_OPTIONS, load_s=len(REFUSED) * 6.0, rate=300.0,
        more=LIMITS,
    ).start()  # fmt: skip
    before, began_s = case.pool.pids(), time.monotonic()
    names = list(REFUSED)
    case.rng.shuffle(names)
    with httpx.Client(base_url=case.pool.base_url, timeout=5, trust_env=False, verify=False) as http:
        eventually(lambda: http.get("/readyz").status_code == 200, 20)
        for name in names:
            refusal = REFUSALS[name]
            refusal.begin(case.server, case.redis)
            answer = refused(http)
            assert int(answer.headers["retry-after"]) >= 1 and answer.json()["code"], name
            done = len(case.recording().ends)
            case.until(case.load.elapsed_s + REFUSED_S)
            if refusal.settles:
                eventually(lambda: not case.redis.xpending("events", "workers")["pending"], what="acks go on")
            refusal.end(case.server, case.redis)
            back_ns = time.monotonic_ns()
            case.struck(name, answer.status_code == 503, back_ns)
            eventually(lambda done=done: len(case.recording().ends) > done + 20, interval_s=0.02)
            case.check(f"{name} is over until messages are handled", (time.monotonic_ns() - back_ns) / 1e6, 3000)
            eventually(lambda: http.get("/readyz").status_code == 200, 20)
    check_quiet(case, time.monotonic() - began_s)
    assert case.pool.pids() == before and not case.pool.events("worker exited")
    case.load.end()
    case.finish(repeated_max=0)


def refused(http: httpx.Client) -> Any:
    """The first refusal of a POST; which refusals reach an open connection depends on the server."""

    def answer() -> Any:
        found = http.post("/v1/streams/elsewhere/messages", json={"n": 1})
        return found if not found.is_success else None

    return eventually(answer, 20, 0.02)
