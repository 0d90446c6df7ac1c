"""Cases 11, 12 and 14: too little memory, broken code, and no free process, under load."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from supervisor.errors import EXIT_HANDLERS, EXIT_USAGE
from tests.delivery.case import Case
from tests.delivery.recorder import PLAIN, handlers
from tests.delivery.setting import IN_HAND_MAX, LONG_WORK_MS
from tests.support.cgroups import MemoryGroup, memory_group
from tests.support.pids_group import PidsGroup, pids_group
from tests.support.waiting import eventually

StartCase = Callable[..., Case]
MEGABYTE = 1_000_000


@pytest.fixture
def memory() -> Iterator[MemoryGroup]:
    with memory_group() as made:
        yield made


@pytest.fixture
def pids() -> Iterator[PidsGroup]:
    with pids_group() as made:
        yield made


def one_eats(n: int, _rng: random.Random) -> dict[str, Any]:
    return {"kind": "eat" if n == 1000 else "plain"}


@pytest.mark.long
def test_11_out_of_memory(memory: MemoryGroup, make_case: StartCase) -> None:
    case = make_case(
        body="""
        @handler("events", group="workers")
        async def handle(message: Message) -> None:
            with run(message):
                kept = []
                while message.fields["kind"] == "eat" and (kept or first("eats")):
                    kept.append(b"x" * 1_000_000)
                await asyncio.sleep(0.002)
        """,
        fields=one_eats,
    )
    for process in case.start_pool().processes():  # all of them: the kernel chooses
        memory.take(process.pid)
    memory.limit(250 * MEGABYTE)
    case.start_load()
    [left] = eventually(lambda: case.pool.events("worker exited"), 40, 0.01)
    case.struck("the kernel killed a worker for its memory", memory.oom_kills() == 1)
    assert left["likely_cause"] == "the kernel's out-of-memory killer"
    case.finish(repeated_max=IN_HAND_MAX, recover_ms=2000)


@pytest.mark.long
def test_11_recycled_in_time(start_case: StartCase) -> None:
    # A leak: each worker is replaced when it has grown too far, and that costs nothing.
    case = start_case(
        body="""
        KEPT = []
        @handler("events", group="workers")
        async def handle(message: Message) -> None:
            with run(message):
                KEPT.append(b"x" * 100_000)
                await asyncio.sleep(0.002)
        """,
        pool="recycle_growth_mb = 20",
        load_s=60.0,
    )
    recycled = eventually(lambda: case.pool.events("recycling worker"))
    case.struck("workers were recycled", {line["reason"] for line in recycled} == {"memory"})
    case.load.end()
    case.finish(repeated_max=0)
    assert {line["reason"] for line in case.pool.events("worker exited")} == {"drained"}


@pytest.mark.parametrize("bad", ["import", "setting"])
@pytest.mark.long
def test_12_bad_code(start_case: StartCase, bad: str) -> None:
    # A running pool refuses it and goes on as it is; a pool that starts with it leaves, and touches no message.
    case = start_case()
    path = case.pool.folder / "handlers.py" if bad == "import" else case.pool.config
    good = path.read_text()
    case.moment()
    before = case.pool.pids()
    path.write_text(good + ("\nimport nothing_of_this_name\n" if bad == "import" else "\n[pol]\nworkers = 3\n"))
    case.pool.send(signal.SIGHUP)
    [refused] = eventually(lambda: case.pool.events("restart failed"))
    case.struck("a restart with bad code was refused", "nothing_of_this_name" in str(refused) or "pol" in str(refused))
    assert case.pool.pids() == before
    case.pool.send(signal.SIGTERM)
    case.pool.wait()
    pending = case.pending()
    began_ns = time.monotonic_ns()
    case.pool.start(ready=False)
    assert case.pool.wait() == (EXIT_HANDLERS if bad == "import" else EXIT_USAGE)
    case.check("start until it has left", (time.monotonic_ns() - began_ns) / 1e6, 2000)
    assert case.pending() == pending
    path.write_text(good)
    case.pool.start()
    case.finish(repeated_max=0, errors=["restart failed"])
    assert case.pool.output.count("did you mean") == (2 if bad == "setting" else 0)


@pytest.mark.long
def test_14_no_fork(pids: PidsGroup, make_case: StartCase) -> None:
    case = make_case(work_ms=LONG_WORK_MS)
    pids.take(case.start_pool().pid)
    case.start_load()
    case.moment(0.1, 0.2)
    slot = case.busy_slot(in_hand=5)
    pids.limit(1)
    dead = case.pool.pids()[slot]
    os.kill(dead, signal.SIGKILL)
    eventually(lambda: len(case.pool.events("worker start failed")) >= 3)
    assert case.pool.ask("status")["state"] == "degraded"
    pids.limit(None)
    lifted_ns = time.monotonic_ns()
    case.struck("forks were refused", pids.refused() >= 3, lifted_ns)
    eventually(lambda: slot in case.pool.pids(), 20, 0.005)
    case.check("forks again until there is a successor", (time.monotonic_ns() - lifted_ns) / 1e6, 1500)
    case.finish(repeated_max=IN_HAND_MAX, recover_ms=3000, errors=["worker start failed"])


def test_handlers_text_is_whole() -> None:
    # The cases above break it on purpose; by itself it compiles.
    compile(handlers(PLAIN), "handlers.py", "exec")
