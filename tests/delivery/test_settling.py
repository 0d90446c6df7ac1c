"""How messages are settled when much goes wrong at once: retries, rejections, parts of batches, and restarts."""

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.case import Case
from tests.delivery.setting import IN_HAND_MAX
from tests.support.stepped_clock import SteppedClock
from tests.support.waiting import eventually

StartCase = Callable[..., Case]
RETRY_AFTER_S = 2.0

#: `late` asks for a retry in two seconds, then fails, then succeeds.
LATE = f"""
@handler("events", group="workers", retry_base_s=0.5)
async def handle(message: Message) -> None:
    with run(message):
        if message.fields["kind"] == "late":
            note(message, f"attempt{{message.deliveries}}")
            if message.deliveries == 1:
                raise Retry(after_s={RETRY_AFTER_S})
            if message.deliveries == 2:
                raise ValueError("not yet")
        await asyncio.sleep(0.002)
"""


def some_late(_n: int, rng: random.Random) -> dict[str, Any]:
    return {"kind": "late" if rng.random() < 0.02 else "plain"}


def attempts(case: Case) -> dict[int, list[tuple[str, int]]]:
    """Message -> its attempts, as its handler saw them, and when."""
    found: dict[int, list[tuple[str, int]]] = {}
    for line in case.recording().lines:
        if line.what.startswith("attempt"):
            found.setdefault(line.n, []).append((line.what, line.at_ns))
    return found


def waiting(case: Case) -> int:
    """How many messages wait for their first retry."""
    return sum(len(found) == 1 for found in attempts(case).values())


@pytest.mark.parametrize(
    "end",
    [pytest.param(signal.SIGTERM, id="drained", marks=pytest.mark.long), pytest.param(signal.SIGKILL, id="killed")],
)
def test_retries_survive_the_pool(start_case: StartCase, end: signal.Signals) -> None:
    # How often a message failed and when it is due are in Redis: the next pool continues where this one stopped.
    case = start_case(body=LATE, fields=some_late, load_s=60.0)
    eventually(lambda: waiting(case) > 20)
    case.pool.send(end)
    case.pool.wait()
    case.struck("the pool left while messages waited for a retry", waiting(case) > 5)
    case.load.end()
    eventually(lambda: not case.pool.processes())
    case.pool.start()
    late = case.load.numbers(kind="late")
    case.finish(
        repeated_max=2 * len(late) + (4 * IN_HAND_MAX if end == signal.SIGKILL else 0), errors=["handler failed"]
    )
    early, wrong = [], {}
    for n, found in attempts(case).items():
        names = [name for name, _ in found]
        # A message whose worker was killed before its failure was recorded is tried again as if for the first time.
        if list(dict.fromkeys(names)) != ["attempt1", "attempt2", "attempt3"] or (
            end == signal.SIGTERM and len(names) != 3
        ):
            wrong[n] = names
            continue
        first = max(at_ns for name, at_ns in found if name == "attempt1")
        second, due_ns = found[names.index("attempt2")][1], first + int(RETRY_AFTER_S * 1e9)
        early += [second - due_ns] if second < due_ns - 20_000_000 else []
    assert not wrong, f"attempts were lost or counted twice: {wrong}"
    assert not early, f"before they were due: {early}"
    assert set(attempts(case)) == late


@pytest.mark.long
def test_retries_after_a_clock_was_put_back(make_case: StartCase, tmp_path: Path) -> None:
    # When they are due is noted by the time of day; the next pool must not wait an hour for that.
    clock = SteppedClock(tmp_path)
    clock.step(3600)
    case = make_case(body=LATE, fields=some_late, load_s=60.0, env=clock.environment).start()
    eventually(lambda: waiting(case) > 20)
    case.pool.send(signal.SIGTERM)
    case.pool.wait()
    clock.step(0)
    case.struck("the clock was put back while messages waited for a retry", waiting(case) > 5)
    case.load.end()
    case.pool.start()
    late = case.load.numbers(kind="late")
    case.finish(repeated_max=2 * len(late), errors=["handler failed"], drain_limit_s=40)


MIXED = """
@handler("events", group="workers", max_deliveries=3, retry_base_s=0.05, retry_max_s=0.2)
async def single(message: Message) -> None:
    with run(message):
        kind = message.fields["kind"]
        if kind == "reject":
            raise Reject("not wanted")
        if kind == "later" and message.deliveries == 1:
            raise Retry(after_s=0.1)
        if kind == "fail":
            raise ValueError("never")
        await asyncio.sleep(0.002)

@handler("events", group="batches", max_deliveries=2, retry_base_s=0.05)
async def batch(messages: list[Message]) -> None:
    bad = {}
    for message in messages:
        note(message, "start")
        kind = message.fields["kind"]
        if kind in ("reject", "fail"):
            bad[message.id] = Reject("not wanted") if kind == "reject" else ValueError("never")
        elif kind == "later" and message.deliveries == 1:
            bad[message.id] = Retry(after_s=0.1)
        else:
            note(message, "end")
    await asyncio.sleep(0.002)
    if bad:
        raise BatchError(bad)
"""


def mixed(_n: int, rng: random.Random) -> dict[str, Any]:
    [kind] = rng.choices(["plain", "reject", "later", "fail"], [90, 2, 6, 2])
    return {"kind": kind}


@pytest.mark.long
@pytest.mark.parametrize("kills", [0, 2])
def test_each_group_settles_for_itself(start_case: StartCase, kills: int) -> None:
    # Two groups of one stream with different rules: even with kills, exactly the planned messages become dead letters.
    case = start_case(body=MIXED, fields=mixed, groups=("workers", "batches"), load_s=3.0)
    for _ in range(kills):
        case.moment(0.1, 0.8)
        slot = case.rng.randrange(4)
        eventually(lambda slot=slot: case.pool.kill_worker(slot))
    case.load.join()
    later, fail, reject = (case.load.numbers(kind=kind) for kind in ("later", "fail", "reject"))
    case.struck("messages were rejected, retried and given up", min(len(later), len(fail), len(reject)) > 10)
    # Started beyond once without a fault: who came later once more. The planned dead are not counted.
    planned = {"workers": fail | reject, "batches": fail | reject}
    case.finish(
        repeated_max=len(later) + 2 * IN_HAND_MAX * kills, dead=planned, errors=["handler failed", "message given up"]
    )
    for group, deliveries in (("workers", 3), ("batches", 2)):
        letters = {int(letter["field:n"]): letter for letter in case.letters(group)}
        assert {letters[n]["reason"] for n in reject} == {"not wanted"}
        assert {letters[n]["deliveries"] for n in fail} == {str(deliveries)}, "each had all its attempts, and no more"
