"""Faults of all kinds in an order that the seed chooses, while the pool works and messages fail."""

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.delivery.case import Case
from tests.delivery.setting import IN_HAND_MAX, LONG_WORK_MS
from tests.support.waiting import eventually

StartCase = Callable[..., Case]
EVERY_S = 0.4
BODY = """
@handler("events", group="workers", retry_base_s=0.2, max_deliveries=3)
async def handle(message: Message) -> None:
    with run(message):
        await asyncio.sleep(float(message.fields["work_ms"]) / 1000)
        if message.fields["kind"] == "later" and message.deliveries == 1:
            raise Retry(after_s=0.3)
        if message.fields["kind"] == "reject":
            raise Reject("not wanted")

@handler("events", group="threads", concurrency=8)
def handle_in_a_thread(message: Message) -> None:
    with run(message):
        time.sleep(0.001)
"""


def mixed(_n: int, rng: random.Random) -> dict[str, Any]:
    [kind] = rng.choices(["plain", "later", "reject"], [95, 4, 1])
    return {"kind": kind}


class Nemesis:
    """The faults; each returns how many processes it has ended or may have ended."""

    def __init__(self, case: Case) -> None:
        self._case, self._rng = case, case.rng
        self._kinds = [self.kill, self.kill, self.kill_all, self.freeze, self.restart, self.scale, self.scale_and_kill]
        self.done: list[str] = []

    def strike(self) -> int:
        """One of them, by the seed."""
        chosen = self._rng.choice(self._kinds)
        deaths = chosen()
        self.done.append(chosen.__name__)
        return deaths

    def kill(self) -> int:
        """SIGKILL for one worker."""
        return self._kill(1)

    def kill_all(self) -> int:
        """SIGKILL for all."""
        return self._kill(100)

    def freeze(self) -> int:
        """SIGSTOP for one, until it is found out."""
        os.kill(self._rng.choice(self._pids()), signal.SIGSTOP)
        return 1

    def restart(self) -> int:
        """A rolling restart."""
        self._case.pool.send(signal.SIGHUP)
        return 0

    def scale(self) -> int:
        """Another number of workers."""
        self._case.pool.ask("scale", n=self._rng.randint(1, 6))
        return 0

    def scale_and_kill(self) -> int:
        """The same, and while they leave, one is killed."""
        self.scale()
        return self._kill(1)

    def _pids(self) -> list[int]:
        return eventually(lambda: sorted(self._case.pool.pids().values()))

    def _kill(self, most: int) -> int:
        pids = self._pids()
        self._rng.shuffle(pids)
        for pid in pids[:most]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return min(most, len(pids))


@pytest.mark.long
def test_everything_at_once(start_case: StartCase) -> None:
    case = start_case(
        body=BODY, fields=mixed, groups=("workers", "threads"), work_ms=LONG_WORK_MS, pool="beat_limit_s = 1.0",
        load_s=6.0,
    )  # fmt: skip
    nemesis, deaths, at_s = Nemesis(case), 0, 0.5
    while at_s < case.load_s - 1:
        case.until(at_s)
        deaths += nemesis.strike()
        at_s += EVERY_S
    case.struck(", ".join(nemesis.done), len(nemesis.done) > 8)
    case.load.join()
    eventually(lambda: case.pool.ask("status")["operation"] is None, 40, 0.1)
    eventually(lambda: case.pool.ask("scale", n=4), 30, 0.1)
    eventually(lambda: sum(w["state"] == "READY" for w in case.pool.ask("status")["workers"]) == 4, 60, 0.1)
    later, reject = case.load.numbers(kind="later"), case.load.numbers(kind="reject")
    began_s = time.monotonic()
    case.finish(
        repeated_max=len(later) * 2 + IN_HAND_MAX * deaths, dead={"workers": reject, "threads": set()},
        errors=["handler failed", "message given up", "crash breaker opened", "restart failed"],
    )  # fmt: skip
    case.check("the end of all faults until everything is done", time.monotonic() - began_s, 40, "s")
