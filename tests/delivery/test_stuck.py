"""Cases 5 to 8: processes that are stopped or blocked, and handlers that never end."""

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.delivery.case import HOST, Case
from tests.delivery.checker import Effect, check, quantile
from tests.delivery.setting import IN_HAND_MAX, LONG_WORK_MS
from tests.support.waiting import eventually

StartCase = Callable[..., Case]
BEAT_LIMIT_S = 1.0
#: A worker without a sign of life is killed this long after its limit, at the latest.
KILL_SLACK_S = 1.0


def stop(pid: int) -> int:
    """Send SIGSTOP; return since when it is stopped, by the monotonic clock in ns."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, interval_s=0.001)
    return time.monotonic_ns()


@pytest.mark.long
def test_05_sigstop_arbiter(start_case: StartCase) -> None:
    # When it continues, all limits have passed by its clock. No process may be killed for that.
    case = start_case(pool=f"beat_limit_s = {BEAT_LIMIT_S}")
    case.moment(0.1, 0.2)
    before = case.pool.pids()
    stopped_ns = stop(case.pool.pid)
    eventually(lambda: time.monotonic_ns() > stopped_ns + 2.2e9 * BEAT_LIMIT_S, interval_s=0.05)
    case.pool.send(signal.SIGCONT)
    late = eventually(lambda: case.pool.events("arbiter stalled"))
    case.struck("the arbiter stood still", late[0]["late_s"] > BEAT_LIMIT_S, stopped_ns)
    case.load.join()
    assert case.pool.pids() == before and not case.pool.events("worker exited")
    case.finish(repeated_max=0, recover_ms=1000)


def test_06_sigstop_worker(start_case: StartCase) -> None:
    case = start_case(work_ms=LONG_WORK_MS, pool=f"beat_limit_s = {BEAT_LIMIT_S}")
    case.moment(0.1, 0.3)
    slot = case.busy_slot(in_hand=3)
    pid = case.pool.pids()[slot]
    stopped_ns = stop(pid)
    [left] = eventually(lambda: case.pool.events("worker exited"), interval_s=0.005)
    case.struck("a worker stood still", (left["pid"], left["reason"]) == (pid, "hung"), stopped_ns)
    took_ms = (time.monotonic_ns() - stopped_ns) / 1e6
    case.check("SIGSTOP until it is killed", took_ms, 1000 * (BEAT_LIMIT_S + KILL_SLACK_S))
    case.finish(repeated_max=IN_HAND_MAX, recover_ms=1000 * (BEAT_LIMIT_S + KILL_SLACK_S) + 1000)
    late = [line for line in case.recording().lines if line.pid == pid and line.at_ns > stopped_ns]
    assert not late, "what was taken from it, it did not do afterwards"


def one_blocks(n: int, _rng: random.Random) -> dict[str, Any]:
    return {"kind": "block"} if n == 800 else {"kind": "plain"}


@pytest.mark.long
def test_07_blocked_loop(start_case: StartCase) -> None:
    case = start_case(
        body="""
        @handler("events", group="workers")
        async def handle(message: Message) -> None:
            with run(message):
                if message.fields["kind"] == "block" and first("block"):
                    note(message, "blocks")
                    time.sleep(60)
                await asyncio.sleep(0.002)
        """,
        pool=f"beat_limit_s = {BEAT_LIMIT_S}",
        fields=one_blocks,
    )
    [left] = eventually(lambda: case.pool.events("worker exited"), interval_s=0.005)
    gone_ns = time.monotonic_ns()
    [blocks] = [line for line in case.recording().lines if line.what == "blocks"]
    proof = (left["pid"], left["reason"], left["slot"]) == (blocks.pid, "hung", int(blocks.consumer[len(HOST) + 1 :]))
    case.struck("a handler blocked its loop", proof, blocks.at_ns)
    took_ms = (gone_ns - blocks.at_ns) / 1e6
    case.check("blocked until it is killed", took_ms, 1000 * (BEAT_LIMIT_S + KILL_SLACK_S))
    case.finish(repeated_max=IN_HAND_MAX, recover_ms=1000 * (BEAT_LIMIT_S + KILL_SLACK_S) + 1000)
    # Workers that were not involved were not slowed down.
    others = [line for line in case.recording().lines if line.what == "end" and line.consumer != blocks.consumer]
    before = p99_ms(case, others, 0, blocks.at_ns)
    meanwhile = p99_ms(case, others, blocks.at_ns, gone_ns)
    case.figure("p99 of the other workers' messages before", before, "ms")
    case.figure("p99 of the other workers' messages meanwhile", meanwhile, "ms")
    assert meanwhile < 1000 * BEAT_LIMIT_S, "none of them waited for the one that was blocked"


def p99_ms(case: Case, lines: list[Any], from_ns: int, to_ns: int) -> float:
    """Of the waits of the messages that were acknowledged within this time and done by these lines."""
    within = {n: at_ns for n, at_ns in case.load.attempts.items() if at_ns and from_ns <= at_ns < to_ns}
    ends = [Effect(line.n, line.at_ns) for line in lines if line.n in within]
    waits = check(within, [], ends).waits_ms
    assert len(waits) > 50
    return quantile(waits, 0.99)


def some_hang(n: int, rng: random.Random) -> dict[str, Any]:
    return {"kind": "hang" if rng.random() < 0.01 else "plain"}


@pytest.mark.long
def test_08_never_returns(start_case: StartCase) -> None:
    limit_s = 5.0  # long enough that quick messages keep to it on a busy machine, too
    case = start_case(
        body=f"""
        @handler("events", group="workers", timeout_s={limit_s}, retry_base_s=0.05)
        async def handle(message: Message) -> None:
            with run(message):
                if message.fields["kind"] == "hang" and message.deliveries == 1:
                    try:
                        await asyncio.Event().wait()
                    finally:
                        note(message, "cancelled")
                await asyncio.sleep(0.002)
        """,
        fields=some_hang,
    )
    before = case.pool.pids()
    case.load.join()
    hanging = case.load.numbers(kind="hang")
    case.struck("handlers never returned", len(hanging) > 10, case.load.began_ns)
    verdict = case.finish(repeated_max=len(hanging), errors=["handler failed"])["workers"]
    assert verdict.repeated == dict.fromkeys(hanging, 1), "these messages had a second attempt, and no others"
    lines = case.recording().lines
    assert {line.pid for line in lines} == set(before.values()), "a time limit ends no worker"
    started: dict[int, int] = {}
    times = []
    for line in lines:
        if line.what == "start":
            started.setdefault(line.n, line.at_ns)
        elif line.what == "cancelled":
            times.append((line.at_ns - started[line.n]) / 1e6)
    assert len(times) == len(hanging)
    case.check(f"start until it is cancelled, time limit {limit_s:g} s", max(times), 1000 * limit_s + 500)
    assert not case.pool.events("worker exited") or {e["reason"] for e in case.pool.events("worker exited")} == {
        "drained"
    }
