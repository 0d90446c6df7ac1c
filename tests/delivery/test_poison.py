"""Cases 9, 10 and 13: messages that end their worker, and a worker that dies again and again."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from supervisor.shared_state import SlotField
from tests.delivery.case import HOST, Case
from tests.delivery.checker import rate_per_s
from tests.delivery.setting import IN_HAND_MAX, LONG_WORK_MS
from tests.support.faults import shared_state_of
from tests.support.waiting import eventually

StartCase = Callable[..., Case]
#: One crash before the message is known, then `max_crashes` alone.
DEATHS_MAX = 4
DEATHS = {
    "exit": "os._exit(1)",
    "segfault": "ctypes.string_at(0)",
    "abort": "os.abort()",
}


def deadly(death: str) -> str:
    return f"""
    import ctypes
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        with run(message):
            if message.fields["kind"] == "poison":
                {DEATHS[death]}
            await asyncio.sleep(float(message.fields["work_ms"]) / 1000)
    """


def poison_at(place: int) -> Callable[[int, random.Random], dict[str, Any]]:
    return lambda n, _rng: {"kind": "poison" if n == place else "plain"}


def deaths(case: Case) -> list[dict[str, Any]]:
    return [line for line in case.pool.events("worker exited") if line["reason"] in ("signal", "exit")]


def test_09_poison_among_200(make_case: StartCase, seed: int) -> None:
    place = random.Random(seed).randrange(200)
    case = make_case(body=deadly("exit"), fields=poison_at(place))
    case.publish(200)
    case.start_pool(ready=False)
    eventually(lambda: case.dead() and case.drained(), 30)
    count = len(deaths(case))
    case.struck("a message killed its worker", count, case.load.ended_ns)
    case.check("deaths by one poison message among 200", count, DEATHS_MAX, "")
    case.pool.wait_ready()
    verdict = case.finish(repeated_max=IN_HAND_MAX * count, dead={place}, errors=["message given up"])["workers"]
    assert (verdict.done, verdict.dead) == (199, 1)
    [letter] = case.letters()
    assert letter["reason"] == "crashed the worker" and letter["id"] == case.load.ids[place]


@pytest.mark.parametrize("death", ["segfault", *(pytest.param(d, marks=pytest.mark.long) for d in ("exit", "abort"))])
def test_09_poison_under_load(start_case: StartCase, seed: int, death: str) -> None:
    place = random.Random(seed).randrange(500, 1500)
    case = start_case(body=deadly(death), fields=poison_at(place))
    eventually(case.dead, 30)
    at_ns = next(line.at_ns for line in case.recording().lines if line.n == place)
    count = len(deaths(case))
    case.struck(f"a message killed its worker by {death}", count, at_ns)
    case.check("deaths by one poison message", count, DEATHS_MAX, "")
    case.finish(repeated_max=IN_HAND_MAX * count, dead={place}, recover_ms=3000, errors=["message given up"])


def one_percent(_n: int, rng: random.Random) -> dict[str, Any]:
    return {"kind": "poison" if rng.random() < 0.01 else "plain"}


@pytest.mark.long
def test_10_poison_storm(start_case: StartCase) -> None:
    case = start_case(body=deadly("exit"), fields=one_percent, rate=500.0)
    arbiter = psutil.Process(case.pool.pid)
    began_s, used_s = time.monotonic(), sum(arbiter.cpu_times()[:2])
    case.load.join()
    poison = case.load.numbers(kind="poison")
    case.struck(f"{len(poison)} messages that kill", len(poison) >= 5, case.load.began_ns)
    plain = len(case.load.attempts) - len(poison)
    # Each crash interrupts what is in hand, so on a busy machine this is slower than the load.
    limit_s = 20 + 5 * case.load_s
    eventually(lambda: len({end.n for end in case.recording().ends}) == plain, limit_s, 0.2, "the good ones are done")
    eventually(lambda: len(case.dead()) == len(poison), 20, 0.2, "the others are dead letters")
    assert not case.pool.ask("status")["breaker_open"]
    took_s = time.monotonic() - began_s
    used = (sum(arbiter.cpu_times()[:2]) - used_s) / took_s
    count = len(deaths(case))
    case.check("deaths for each poison message", count / len(poison), DEATHS_MAX, "")
    # Fifteen forks a second, each of which copies the arbiter's page tables: 3 ms.
    case.check("CPU of the arbiter meanwhile", 100 * used, 15, "%")
    case.pool.wait_ready(40)
    case.finish(repeated_max=IN_HAND_MAX * count, dead=poison, errors=["message given up"])


@pytest.mark.long
def test_13_one_slot_crash_loops(start_case: StartCase) -> None:
    # It dies each time before it has done anything. The others go on, and its restarts become rare.
    case = start_case(work_ms=LONG_WORK_MS)
    case.moment(0.1, 0.2)
    slot = case.busy_slot(in_hand=3)
    shared = shared_state_of(case.pool.pid)
    killed_ns: list[int] = []
    killed = 0
    while case.load.elapsed_s < case.load_s:
        pid = shared.slot(slot).get(SlotField.PID)
        if pid not in (0, killed):
            killed = pid
            killed_ns.append(time.monotonic_ns())
            os.kill(pid, signal.SIGKILL)
        case.until(case.load.elapsed_s + 0.002)
    case.struck("a worker died again and again", len(killed_ns) >= 4, killed_ns[-1])
    # One that was killed late has done something, and its successor starts at once.
    did = {line.pid for line in case.recording().lines if line.what == "end"}
    exits = [line for line in case.pool.events("worker exited") if line["slot"] == slot]
    late = sum(line["pid"] in did for line in exits[1:])
    case.check("starts of the one that crashes", len(killed_ns), 10 + 3 * late, "")
    case.pool.wait_ready(40)
    # What it holds waits for its next incarnation.
    last_s = case.pool.events("worker exited")[-1]["next_start_s"]
    case.finish(repeated_max=IN_HAND_MAX * len(killed_ns), recover_ms=1000 * last_s + 2000)
    waits_s = [line["next_start_s"] for line in case.pool.events("worker exited") if line.get("signal") == "SIGKILL"]
    assert late or all(earlier < later for earlier, later in itertools.pairwise(waits_s[2:])), waits_s
    during = rate_per_s(case.recording().ends, killed_ns[0], killed_ns[-1]) / case.setting.rate
    case.figure("share of the load that was not done meanwhile", 100 * (1 - during), "%")
    names = {name for name, pids in case.recording().pids().items() if len(pids) > 1}
    assert names == {f"{HOST}:{slot}"}, "the others lived on"
