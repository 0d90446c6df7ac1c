"""Clients of the control socket that stall, are not allowed or send garbage; and a socket that is deleted."""

import contextlib
import json
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.control.server import CLIENTS_MAX, PATIENCE_S
from supervisor.errors import EXIT_OK, EXIT_RUNNING, NotRunningError
from tests.support.faults import Bounds, incarnations, ready_again_ms, shared_state_of
from tests.support.standins import Standins, now_s
from tests.support.waiting import eventually

Make = Callable[..., Standins]
NOBODY = 65534


def connect(path: Path | str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.settimeout(30)
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


def is_hung_up(client: socket.socket) -> bool:
    """Return whether the arbiter has closed this connection."""
    client.settimeout(0)
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


@contextlib.contextmanager
def stalled(path: Path, count: int, kinds: int) -> Iterator[list[socket.socket]]:
    """Connect clients in rotation: a silent one, one with half a request, one that asks much and reads nothing."""
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(connect(path)) for _ in range(count)]
        for number, client in enumerate(clients):
            if number % kinds == 1:
                client.sendall(b'{"cmd": "sta')
            elif number % kinds == 2:
                client.setblocking(False)
                with contextlib.suppress(OSError):
                    while True:
                        client.send(b'{"cmd": "status"}\n' * 100)
        yield clients


@pytest.mark.long
def test_41_ctl_client_stalls(standins: Make, bound: Bounds) -> None:
    pool = standins(workers=4)
    shared, path = shared_state_of(pool.pid), pool.paths.control
    times, answers = [], []
    for slot in range(3):
        # One connection is free and is served at once; dead workers are replaced at once, too.
        with stalled(path, CLIENTS_MAX - 1, 3):
            was, before = incarnations(shared, [slot]), pool.pids()
            killed_ns = time.monotonic_ns()
            os.kill(before[slot], signal.SIGKILL)
            times += ready_again_ms(shared, was, killed_ns).values()
            asked_s = now_s()
            assert pool.status()["pid"] == pool.pid
            answers.append((now_s() - asked_s) * 1000)
        eventually(lambda: pool.ask("ping") == {})
    bound.check("kill -9 of a worker until READY, 7 clients stall", times, 300)
    bound.check("an answer meanwhile", answers, 100)
    # All connections are in use: the next client is refused, but not for long.
    with stalled(path, CLIENTS_MAX, 2) as clients:
        with connect(path) as ninth:
            eventually(lambda: is_hung_up(ninth), 20)
        with bound.within("all 8 places stalled until another client is served", (PATIENCE_S + 1.5) * 1000):
            assert pool.ask("ping") == {}, "the client retries"
        eventually(lambda: all(map(is_hung_up, clients)))
    assert [worker["restarts"] for worker in pool.status()["workers"]] == [1, 1, 1, 0]


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    """Run as another user for a while."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user for a while")
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_42_ctl_wrong_uid(standins: Make, monkeypatch: pytest.MonkeyPatch, bound: Bounds) -> None:
    pool = standins(workers=2)
    before = pool.pids()
    path = pool.paths.control
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    # From inside the folder, so that only the socket's permissions count and not those of the tests' folder.
    monkeypatch.chdir(path.parent)
    with another_user(), pytest.raises(PermissionError):
        connect(path.name)
    # With wider permissions, the arbiter itself checks the user.
    path.parent.chmod(0o777)
    path.chmod(0o777)
    with another_user(), bound.within("another user is hung up on", 100), connect(path.name) as client:
        with contextlib.suppress(ConnectionError):  # hung up on before it has said a word
            client.sendall(b'{"cmd": "stop"}\n')
        assert eventually(lambda: is_hung_up(client), interval_s=0.001)
    assert pool.ask("ping") == {}
    assert pool.status()["state"] == "healthy" and pool.pids() == before and not pool.events("draining")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
strangers = st.dictionaries(st.text(min_size=1, max_size=8).map(lambda name: f"x{name}"), json_values, min_size=1)
wrong_numbers = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=5), st.just([1]), st.integers(max_value=-1),
    st.sampled_from([257, 2**63, 2**64, 10**400]),
)  # fmt: skip
wrong_times = st.one_of(
    st.booleans(), st.text(max_size=5), st.just([1]), st.floats(max_value=-1e-9),
    st.sampled_from([math.nan, math.inf, -math.inf, 10**400]),
)  # fmt: skip
requests = st.one_of(
    json_values,
    st.builds(lambda cmd, args: {**args, "cmd": cmd}, json_values, strangers),
    st.builds(
        lambda cmd, args: {**args, "cmd": cmd},
        st.sampled_from(["ping", "status", "restart", "pause", "resume", "stop", "scale"]), strangers,
    ),
    st.builds(lambda n: {"cmd": "scale", "n": n}, wrong_numbers),
    st.builds(lambda timeout_s: {"cmd": "stop", "timeout_s": timeout_s}, wrong_times),
)  # fmt: skip
garbage = st.one_of(st.binary(max_size=300), requests.map(lambda request: json.dumps(request).encode()))


def without_beats(services: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if name != "beat_age_s"} for one in services]


@pytest.mark.long
def test_43_ctl_garbage_fuzz(standins: Make, bound: Bounds) -> None:
    pool = standins(workers=2, api=True)
    eventually(lambda: [one["state"] for one in pool.status()["services"] if one["name"] == "keeper"] == ["READY"])
    before, services = pool.pids(), without_beats(pool.status()["services"])
    slowest_ms = 0.0
    count = 0

    @settings(max_examples=300, database=None)
    @given(garbage)
    def send(data: bytes) -> None:
        nonlocal slowest_ms, count
        began_s = now_s()
        with connect(pool.paths.control) as client, client.makefile("rb") as reader:
            client.sendall(data + b"\n")
            client.shutdown(socket.SHUT_WR)
            answers = reader.read().splitlines()
        slowest_ms = max(slowest_ms, (now_s() - began_s) * 1000)
        count += len(answers)
        assert len(answers) == data.count(b"\n") + 1
        for answer in map(json.loads, answers):
            assert answer["ok"] is False and "internal error" not in answer["error"], answer

    send()
    with connect(pool.paths.control) as endless, contextlib.suppress(ConnectionError):
        endless.sendall(b"x" * 100_000)
        assert eventually(lambda: is_hung_up(endless)), "a line without end"
    assert count >= 300
    bound.check(f"the slowest of {count} refusals", slowest_ms, 1000)
    status = pool.wait_ready()
    assert pool.pids() == before and without_beats(status["services"]) == services and not status["paused"]
    assert not pool.events("internal error") and not pool.events("draining")


@contextlib.contextmanager
def stopped(pool: Standins) -> Iterator[None]:
    """Stop the arbiter meanwhile."""
    pool.send(signal.SIGSTOP)
    try:
        eventually(lambda: psutil.Process(pool.pid).status() == psutil.STATUS_STOPPED)
        yield
    finally:
        pool.send(signal.SIGCONT)


@pytest.mark.long
def test_44_ctl_socket_deleted(standins: Make, bound: Bounds) -> None:
    pool = standins(workers=2)
    path, before = pool.paths.control, pool.pids()
    for cycle in range(2):
        with stopped(pool):  # else it may be there again
            path.unlink()
            with pytest.raises(NotRunningError, match="does not exist"):
                pool.ask("ping")
        with bound.within("the socket was deleted until it is there again", 2000):
            eventually(lambda: pool.ask("ping") == {}, interval_s=0.02)
        assert path.stat().st_mode & 0o777 == 0o600
        if cycle == 0:  # the new one goes through a restart as the first would
            pool.send(signal.SIGHUP)
            eventually(lambda: (pool.status()["last_operation"] or {}).get("ok"), 20)
    assert not set(before.values()) & set(pool.pids().values())
    # The lock does not depend on the socket.
    path.unlink()
    second = pool.rival().start(ready=False)
    assert second.wait() == EXIT_RUNNING
    assert pool.stop() == EXIT_OK and not path.exists()


def test_44_ctl_socket_replaced(standins: Make) -> None:
    pool = standins(workers=2)
    path, before = pool.paths.control, pool.pids()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        inode = path.stat().st_ino
        until_s = now_s() + 2.5
        eventually(lambda: now_s() > until_s)  # two ticks of the arbiter
        assert path.stat().st_ino == inode, "a foreign file is not deleted"
        # Signals still work, and so does the socket once the foreign file is gone.
        pool.send(signal.SIGTTOU)
        eventually(lambda: [note["slot"] for note in pool.notes("left")] == [1])
        path.unlink()
        eventually(lambda: pool.pids() == {0: before[0]})
        path.unlink()
        stranger_again = socket.socket(socket.AF_UNIX)
        with stranger_again:
            stranger_again.bind(str(path))
            inode = path.stat().st_ino
            assert pool.stop() == EXIT_OK
            assert path.stat().st_ino == inode
    path.unlink()
