"""Notifications to systemd: ready, reloading, stopping, and the watchdog."""

import itertools
import os
import signal
import socket
import statistics
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from supervisor.errors import EXIT_OK
from tests.support.faults import Bounds
from tests.support.standins import Standins, now_s
from tests.support.waiting import eventually

WATCHDOG_S = 0.4


class Systemd:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(path))
        #: (when it was taken, the sender's pid, text)
        self.heard: list[tuple[float, int, str]] = []

    def listen(self) -> list[str]:
        """Return all messages so far."""
        while True:
            try:
                text, more, _, _ = self._socket.recvmsg(4096, 128)
            except BlockingIOError:
                return [text for _, _, text in self.heard]
            [(_, _, credentials)] = more
            self.heard.append((now_s(), struct.unpack("3i", credentials)[0], text.decode()))

    def forget(self) -> None:
        """Forget all messages."""
        self.listen()
        self.heard = []

    def pings_s(self, for_s: float) -> list[float]:
        """Return the times of watchdog messages in this period."""
        self.forget()
        until_s = now_s() + for_s
        eventually(lambda: self.listen() is None or now_s() >= until_s, for_s + 20)
        return [at_s for at_s, _, text in self.heard if text == "WATCHDOG=1"]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    """Set NOTIFY_SOCKET for pools that are started from now on."""
    made = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    yield made
    made.close()


@pytest.mark.long
def test_60_sd_watchdog_parent_hang(systemd: Systemd, standins: Callable[..., Standins], bound: Bounds) -> None:
    pool = standins(workers=2, api=True)
    heard = eventually(lambda: "READY=1" in systemd.listen() and systemd.listen())
    assert heard.count("READY=1") == 1 and "STATUS=starting: 0 of 0 workers ready" in heard
    eventually(lambda: "STATUS=healthy: 2 of 2 workers ready" in systemd.listen())
    pings = systemd.pings_s(4 * WATCHDOG_S)
    gaps = [after - before for before, after in itertools.pairwise(pings)]
    assert statistics.median(gaps) < WATCHDOG_S, "more often than systemd requires"
    # While the arbiter hangs, no watchdog message is sent.
    pool.send(signal.SIGSTOP)
    eventually(lambda: psutil.Process(pool.pid).status() == psutil.STATUS_STOPPED)
    assert systemd.pings_s(2 * WATCHDOG_S) == []
    pool.send(signal.SIGCONT)
    with bound.within("SIGCONT until the next sign of life", 500):
        eventually(lambda: "WATCHDOG=1" in systemd.listen(), interval_s=0.005)
    # A systemd that does not read for a while delays nothing; its queue is full after ten messages.
    until_s = now_s() + 10 * WATCHDOG_S / 2 + 0.5
    slowest_ms = 0.0

    def is_over() -> bool:
        nonlocal slowest_ms
        asked_s = now_s()
        pool.ask("ping")
        slowest_ms = max(slowest_ms, (now_s() - asked_s) * 1000)
        return now_s() > until_s

    eventually(is_over, 30, 0.02)
    bound.check("an answer of the arbiter while systemd does not listen", slowest_ms, 500)
    check_reload(systemd, pool)
    systemd.forget()
    pool.send(signal.SIGTERM)
    assert pool.wait() == EXIT_OK
    assert systemd.listen().count("STOPPING=1") == 1


def check_reload(systemd: Systemd, pool: Standins) -> None:
    """SIGHUP is a reload, and the new image continues the notifications."""
    systemd.forget()
    began_us = now_s() * 1e6
    pool.send(signal.SIGHUP)
    eventually(lambda: ((systemd.listen() and pool.status()["last_operation"]) or {}).get("ok"), 20)
    told = [text for text in systemd.listen() if text.startswith(("RELOADING", "READY"))]
    assert [text.partition("\n")[0] for text in told] == ["RELOADING=1", "READY=1"]
    assert began_us < int(told[0].partition("MONOTONIC_USEC=")[2]) < now_s() * 1e6
    eventually(lambda: systemd.listen().count("WATCHDOG=1") >= 3)
    assert {pid for _, pid, _ in systemd.heard} == {pool.pid}, "no child speaks for the pool"
    [api] = [service["pid"] for service in pool.status()["services"] if service["name"] == "api"]
    # It has the arbiter's environment until it has replaced its image.
    eventually(lambda: "NOTIFY_SOCKET" not in psutil.Process(api).environ())
    assert os.environ["NOTIFY_SOCKET"]
