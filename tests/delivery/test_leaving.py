"""Cases 15 to 18: pools that are stopped, restarted and scaled under load."""

import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.errors import EXIT_DRAIN, EXIT_OK
from tests.delivery.case import GROUP, HOST, STREAM, Case
from tests.delivery.checker import rate_per_s
from tests.support.waiting import eventually

StartCase = Callable[..., Case]


def ids_pending(case: Case) -> set[str]:
    """The ids of all that is pending."""
    found: Any = case.redis.xpending_range(STREAM, GROUP, "-", "+", 10_000)
    return {entry["message_id"].decode() for entry in found}


def leave(case: Case, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
    """Send it and wait; the exit code, and how long it took in ms."""
    sent_ns = time.monotonic_ns()
    case.pool.send(number)
    code = case.pool.wait()
    took_ms = (time.monotonic_ns() - sent_ns) / 1e6
    case.pool.assert_nothing_left(code)
    return code, took_ms


def test_15_sigterm(start_case: StartCase) -> None:
    case = start_case(work_ms=50.0)
    case.moment()
    case.busy_slot(in_hand=10)
    began = {line.entry for line in case.recording().lines}
    code, took_ms = leave(case)
    case.struck("SIGTERM", code == EXIT_OK and began)
    case.check("SIGTERM until it has left, handlers of 50 ms", took_ms, 1000)
    left = ids_pending(case)
    assert not left, f"{len(left)} are pending, of them {len(left & began)} begun"
    did = case.recording()
    assert len(did.starts) == len(did.ends), "what was begun was finished"
    case.pool.start()
    case.finish(repeated_max=0)


def some_slow(_n: int, rng: random.Random) -> dict[str, Any]:
    return {"kind": "slow" if rng.random() < 0.01 else "plain"}


@pytest.mark.long
def test_16_sigterm_handlers_longer_than_grace(start_case: StartCase) -> None:
    grace_s = 1.0
    case = start_case(
        body="""
        @handler("events", group="workers")
        async def handle(message: Message) -> None:
            with run(message):
                slow = message.fields["kind"] == "slow" and not os.path.exists("hurry")
                await asyncio.sleep(60 if slow else 0.002)
        """,
        pool=f"drain_s = {grace_s}",
        fields=some_slow,
    )
    case.moment()
    code, took_ms = leave(case)
    did = case.recording()
    unfinished = {effect.n for effect in did.starts} - {effect.n for effect in did.ends}
    case.struck("SIGTERM, and handlers that do not end in time", code == EXIT_DRAIN and unfinished)
    case.check("SIGTERM until it has left, grace 1 s", took_ms, 1000 * grace_s + 1000)
    assert ids_pending(case) == {case.load.ids[n] for n in unfinished}, "the unfinished are pending, and nothing else"
    (case.pool.folder / "hurry").touch()
    case.pool.start()
    verdict = case.finish(repeated_max=len(unfinished))["workers"]
    assert verdict.repeated == dict.fromkeys(unfinished, 1)


@pytest.mark.parametrize("moment", ["twice", "boot", "restart"])
@pytest.mark.long
def test_17_leaving_at_once(make_case: StartCase, moment: str) -> None:
    # Handlers that take long: a quick stop leaves them unfinished.
    case = make_case(
        body="""
        @handler("events", group="workers")
        async def handle(message: Message) -> None:
            with run(message):
                await asyncio.sleep(0.002 if os.path.exists("hurry") or message.fields["kind"] != "slow" else 60)
        """,
        fields=some_slow if moment == "twice" else lambda _n, _rng: {"kind": "plain"},
    )
    case.start()
    case.moment()
    if moment == "twice":
        eventually(lambda: len(unfinished(case)) > 3)
        case.pool.send(signal.SIGINT)
        eventually(lambda: case.pool.ask("status")["state"] == "draining", interval_s=0.005)
        code, took_ms = leave(case, signal.SIGINT)
        assert code in (EXIT_OK, EXIT_DRAIN)
    elif moment == "boot":
        leave(case)
        case.pool.start(ready=False)
        # Somewhere between the first import and READY.
        wait_s = case.rng.uniform(0.1, 0.8)
        case.until(case.load.elapsed_s + wait_s)
        code, took_ms = leave(case)
        # Python itself ends by the signal until there is a handler for it.
        assert code in (EXIT_OK, -signal.SIGTERM)
    else:
        case.pool.send(signal.SIGHUP)
        case.until(case.load.elapsed_s + case.rng.uniform(0.05, 0.8))
        code, took_ms = leave(case)
        assert code == EXIT_OK
    case.struck(f"stop: {moment}", True)
    case.check(f"from the stop to the exit, {moment}", took_ms, 1000)
    (case.pool.folder / "hurry").touch()
    # A quick stop left some unfinished, and some done whose acks Redis did not get.
    left = ids_pending(case)
    assert not unfinished(case) or moment == "twice"
    case.pool.start()
    case.finish(repeated_max=len(left) if moment == "twice" else 0)


def unfinished(case: Case) -> set[int]:
    """The messages that were started and not finished."""
    did = case.recording()
    return {effect.n for effect in did.starts} - {effect.n for effect in did.ends}


def some_fail_once(_n: int, rng: random.Random) -> dict[str, Any]:
    return {"kind": "fail" if rng.random() < 0.02 else "plain"}


FAILING_ONCE = """
@handler("events", group="workers", retry_base_s=1)
async def handle(message: Message) -> None:
    with run(message):
        note(message, f"attempt{message.deliveries}")
        await asyncio.sleep(0.002)
        if message.fields["kind"] == "fail" and message.deliveries == 1:
            raise ValueError("once")
"""


def assert_steady(case: Case, window_s: float = 0.5) -> None:
    """Check that something was done in every window of the load."""
    ends = case.recording().ends
    at_ns, step_ns = case.load.began_ns + int(0.3e9), int(window_s * 1e9)
    rates = []
    while at_ns + step_ns < case.load.ended_ns:
        rates.append(rate_per_s(ends, at_ns, at_ns + step_ns) / case.setting.rate)
        at_ns += step_ns // 2
    case.figure("share of the load that was not done in the worst half second", 100 * (1 - min(rates)), "%")
    assert min(rates) > 0


def assert_attempts(case: Case) -> set[int]:
    """Check that messages planned to fail once had two attempts; return these messages."""
    failing = case.load.numbers(kind="fail") & set(case.load.ids)
    attempts: dict[int, list[str]] = {}
    for line in case.recording().lines:
        if line.what.startswith("attempt"):
            attempts.setdefault(line.n, []).append(line.what)
    assert {n for n, found in attempts.items() if found != ["attempt1"]} == failing
    wrong = {n: attempts[n] for n in failing if attempts[n] != ["attempt1", "attempt2"]}
    assert not wrong, f"attempts were lost or counted twice: {wrong}"
    return failing


def test_18_rolling_restart(start_case: StartCase) -> None:
    case = start_case(body=FAILING_ONCE, fields=some_fail_once)
    case.moment(0.1, 0.2)
    before = case.pool.pids()
    case.pool.send(signal.SIGHUP)
    eventually(lambda: (case.pool.ask("status")["last_operation"] or {}).get("ok"), 30, 0.02)
    case.struck("a rolling restart", not set(before.values()) & set(case.pool.pids().values()))
    case.load.join()
    failing = case.load.numbers(kind="fail")
    case.finish(repeated_max=len(failing), errors=["handler failed"])
    assert_attempts(case)
    assert_steady(case)
    assert {line["reason"] for line in case.pool.events("worker exited")} == {"drained"}


@pytest.mark.long
def test_18_scale_4_8_2(start_case: StartCase) -> None:
    # A worker that leaves holds waiting retries; a sibling gets them, with the number of their attempts.
    case = start_case(body=FAILING_ONCE, fields=some_fail_once, work_ms=2.0, load_s=60.0)
    case.moment(0.004, 0.01)
    case.pool.ask("scale", n=8)
    eventually(lambda: sum(w["state"] == "READY" for w in case.pool.ask("status")["workers"]) == 8, 40)
    case.until(case.load.elapsed_s + 1.2)
    holding = {name for name, count in case.pending().items() if count and int(name[len(HOST) + 1 :]) >= 2}
    case.pool.ask("scale", n=2)
    names = {f"{HOST}:0", f"{HOST}:1"}
    eventually(lambda: set(case.pending()) == names, 40, what="six have left and hold nothing")
    case.struck("8 workers, then 2", holding)
    case.load.end()
    case.finish(repeated_max=len(case.load.numbers(kind="fail")), errors=["handler failed"])
    failing = assert_attempts(case)
    did = case.recording()
    moved = [n for n in failing if len({line.consumer for line in did.of(n)}) == 2]
    assert moved, "some had their second attempt elsewhere"
    assert_steady(case)
    assert {line["reason"] for line in case.pool.events("worker exited")} == {"drained"}


@pytest.mark.long
def test_18_scaling_down_gives_back_what_was_read_ahead(start_case: StartCase) -> None:
    # Handlers in threads, few at a time: each worker holds some that it has not begun.
    case = start_case(
        body="""
        @handler("events", group="workers", concurrency=4)
        def handle(message: Message) -> None:
            with run(message):
                time.sleep(float(message.fields["work_ms"]) / 1000)
        """,
        work_ms=5.0,
    )
    case.moment()
    case.busy_slot(in_hand=5)
    case.pool.ask("scale", n=1)
    eventually(lambda: set(case.pending()) == {f"{HOST}:0"}, 40, what="three have left and hold nothing")
    case.struck("4 workers, then 1", eventually(lambda: len(case.pool.events("worker exited")) == 3))
    case.pool.ask("scale", n=4)
    eventually(lambda: len(case.pool.pids()) == 4)
    case.finish(repeated_max=0)
