"""Cases 1 to 4: processes of the pool are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from tests.delivery.case import HOST, Case

StartCase = Callable[..., Case]
#: What a worker may have in hand: its handler's `concurrency`.
IN_HAND_MAX = 100


def test_00_no_fault(start_case: StartCase) -> None:
    case = start_case()
    case.finish(repeated_max=0, faultless=True)


def test_01_kill9_one(start_case: StartCase) -> None:
    case = start_case()
    case.moment()
    slot = case.busy_slot(in_hand=5)
    pid = case.pool.pids()[slot]
    killed_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    case.struck("kill -9 of one worker", True, killed_ns)
    case.finish(repeated_max=IN_HAND_MAX, recover_ms=1000)
    assert len(case.recording().pids()[f"{HOST}:{slot}"]) == 2
