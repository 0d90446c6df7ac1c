"""Cases 26 and 27: data that was deleted from Redis, and a replica that had not received all of it."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import redis as redis_py

from supervisor.shared_state import SlotField
from tests.delivery.case import GROUP, STREAM, Case
from tests.delivery.open_loop_producer import Load
from tests.support.faults import shared_state_of
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer, default_flavour
from tests.support.waiting import eventually

StartCase = Callable[..., Case]
MakeCase = Callable[..., Case]
LOST_GROUP = "group created again"
LAG_S = 0.5


def forget(case: Case, numbers: set[int]) -> int:
    """Allow these to be lost, since the fault deleted them; return how many were not done."""
    done = {effect.n for effect in case.recording().ends}
    for n in numbers - done:
        case.load.attempts[n] = None
    return len(numbers - done)


def group_back_ms(case: Case, since_ns: int) -> float:
    def there() -> Any:
        return any(row["name"] == GROUP.encode() for row in case.redis.xinfo_groups(STREAM))

    eventually(there, 20, 0.002)
    return (time.monotonic_ns() - since_ns) / 1e6


@pytest.mark.long
def test_26_flushall(start_case: StartCase) -> None:
    case = start_case()
    before = case.pool.pids()
    case.moment()
    struck_ns = time.monotonic_ns()
    pipe = case.redis.pipeline().time().xinfo_groups(STREAM).flushall()
    (seconds, micros), [group], flushed = pipe.execute()
    case.struck("FLUSHALL", flushed, struck_ns)
    case.check("FLUSHALL until the group is back", group_back_ms(case, struck_ns), 1000)
    case.load.join()
    flushed_ms = seconds * 1000 + micros // 1000
    gone = {n for n, entry in case.load.ids.items() if int(entry.partition("-")[0]) <= flushed_ms}
    eventually(case.drained, 20)
    case.check("messages that FLUSHALL has taken", forget(case, gone), group["pending"] + group["lag"], "")
    eventually(lambda: len(case.pool.events(case_event(case))) == 1, what="logged by the worker that created it again")
    assert case.pool.pids() == before and not case.pool.events("worker exited")
    case.finish(repeated_max=0, recover_ms=2000, errors=[LOST_GROUP])


def case_event(case: Case) -> str:
    """The whole name of the event, from the log."""
    lines = [line for line in case.pool.lines if LOST_GROUP in line]
    return lines[0].partition('"event": "')[2].partition('"')[0] if lines else ""


def test_26_group_destroyed(start_case: StartCase) -> None:
    case = start_case(load_s=3.0)
    before = case.pool.pids()
    case.moment()
    struck_ns = time.monotonic_ns()
    case.struck("XGROUP DESTROY", case.redis.xgroup_destroy(STREAM, GROUP), struck_ns)
    acked = case.load.acked
    case.check("XGROUP DESTROY until the group is back", group_back_ms(case, struck_ns), 1000)
    eventually(lambda: len(case.pool.events(case_event(case))) == 1)
    assert case.pool.pids() == before
    # It begins at 0, otherwise what came in between would be skipped: all that the stream still holds runs once more.
    case.finish(repeated_max=acked + 200, errors=[LOST_GROUP])


@pytest.mark.long
def test_26_deleted_while_pending(start_case: StartCase) -> None:
    case = start_case(work_ms=40.0)
    case.moment()
    slot = case.busy_slot(in_hand=5)
    pid = case.pool.pids()[slot]
    # It is stopped with messages in hand, which are then deleted; its successor finds only their ids.
    psutil.Process(pid).suspend()
    mine: Any = case.redis.xpending_range(STREAM, GROUP, "-", "+", 1000, f"case:{slot}")
    ids = [row["message_id"] for row in mine]
    struck_ns = time.monotonic_ns()
    case.struck("entries were deleted while pending", case.redis.xdel(STREAM, *ids) == len(ids) > 0, struck_ns)
    psutil.Process(pid).send_signal(signal.SIGKILL)
    shared = shared_state_of(case.pool.pid)
    eventually(lambda: shared.slot(slot).get(SlotField.TRIMMED) == len(ids), what=f"{len(ids)} are counted as trimmed")
    case.load.join()
    numbers = {n for n, entry in case.load.ids.items() if entry.encode() in ids}
    assert len(numbers) == len(ids)
    eventually(lambda: not case.redis.xpending(STREAM, GROUP)["pending"], 20)
    case.check("messages that were deleted in hand", forget(case, numbers), len(ids), "")
    case.finish(repeated_max=0, recover_ms=2000)


class WaitingLoad(Load):
    """Counts a message as acknowledged when a replica has it, too."""

    def _send(self, client: redis_py.Redis, count: int) -> None:
        first = len(self.attempts)
        super()._send(client, count)
        try:
            safe = bool(client.wait(1, 1000))
        except (redis_py.RedisError, OSError):
            safe = False
        if not safe:
            for n in range(first, first + count):
                self.attempts[n] = None


@pytest.fixture
def replica() -> Iterator[RedisServer]:
    with RedisServer(default_flavour(), tcp=True, options=("--repl-diskless-sync-delay", "0")) as made:
        yield made


def replicate(link: Proxy, replica: RedisServer) -> redis_py.Redis:
    client = replica.sync()
    client.replicaof("127.0.0.1", str(link.port))
    eventually(lambda: client.info("replication")["master_link_status"] == "up", 20)
    return client


def fail_over(case: Case, replica: RedisServer, client: redis_py.Redis, proxy: Proxy) -> set[int]:
    """Kill the primary and promote its replica; the messages that were acknowledged and are not there."""
    case.server.kill()
    client.replicaof("NO", "ONE")
    proxy.upstream = replica.url
    case.server.start()  # empty, and no longer used; the case ends it
    case.redis = client
    held = {entry.decode() for entry, _ in client.xrange(STREAM)}
    return {n for n, entry in list(case.load.ids.items()) if entry not in held}


@pytest.mark.parametrize(
    "waits", [pytest.param(False, id="async"), pytest.param(True, id="wait", marks=pytest.mark.long)]
)
def test_27_failover_to_a_lagging_replica(make_case: MakeCase, replica: RedisServer, waits: bool) -> None:
    case = make_case(tcp=True, server_options=("--repl-diskless-sync-delay", "0"))
    with Proxy(case.url) as link, Proxy(case.url) as proxy:
        client = replicate(link, replica)
        case.start_pool(proxy.url)
        before = case.pool.pids()
        if waits:
            case.load = WaitingLoad(proxy.url, case.seed, case.setting.rate, case.load_s, work_ms=case.setting.work_ms)
            case.load.start()
        else:
            case.start_load(proxy.url)
        case.moment(0.3, 0.5)
        # Nothing reaches it any more, so it falls behind; with WAIT, nothing is acknowledged during that time.
        assert link.swallow()
        acked = case.load.acked
        case.until(case.load.elapsed_s + LAG_S)
        struck_ns = time.monotonic_ns()
        tail = fail_over(case, replica, client, proxy)
        behind = None in list(case.load.attempts.values()) if waits else tail and case.load.acked > acked
        case.struck("the primary was lost, and its replica did not have it all", behind, struck_ns)
        case.load.join()
        eventually(case.drained, 30, 0.05)
        acked_of_tail = {n for n in tail if case.load.attempts[n] is not None}
        not_done = acked_of_tail - {effect.n for effect in case.recording().ends}
        case.check(
            f"messages lost of the {len(tail)} that were not replicated", len(not_done), 0 if waits else len(tail), ""
        )
        forget(case, acked_of_tail)
        assert case.pool.pids() == before and not case.pool.events("worker exited")
        # The acks and deliveries of the same time are lost with it.
        in_the_gap = int((LAG_S + 0.5) * case.setting.rate) + 400
        case.finish(repeated_max=in_the_gap, recover_ms=4000, errors=[LOST_GROUP])
