"""Small parts of the arbiter: systemd notifications, the out-of-memory counter, the slot locks, children's lines."""

import itertools
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from supervisor.arbiter import oom_kills
from supervisor.arbiter.oom_kills import OomKills
from supervisor.arbiter.outputs import _with_fields
from supervisor.arbiter.systemd import SystemdNotifier
from tests.support.waiting import eventually

# systemd


class Systemd:
    """systemd's end: a real datagram socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(30)

    def receive(self) -> str:
        return self.socket.recv(4096).decode()

    def received(self) -> list[str]:
        """Return all messages that have arrived."""
        found = []
        self.socket.setblocking(False)
        while True:
            try:
                found.append(self.receive())
            except BlockingIOError:
                return found


@pytest.fixture(
    params=["path", pytest.param("abstract", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux's"))]
)
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@supervisor-test-{os.getpid()}"
    found = Systemd(address)
    yield found
    found.socket.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd" if os.path.exists("/proc/self/fd") else "/dev/fd"))


def test_systemd_gets_each_notification_in_its_format(systemd: Systemd) -> None:
    notifier = SystemdNotifier({"NOTIFY_SOCKET": systemd.address})
    before = open_fds()
    notifier.ready()
    assert systemd.receive() == "READY=1"
    notifier.alive()
    assert systemd.receive() == "WATCHDOG=1"
    earliest = time.monotonic_ns() // 1000
    notifier.reloading()
    state, at = systemd.receive().splitlines()
    assert state == "RELOADING=1"
    name, _, micros = at.partition("=")
    assert name == "MONOTONIC_USEC"
    assert earliest <= int(micros) <= time.monotonic_ns() // 1000
    notifier.stopping()
    assert systemd.receive() == "STOPPING=1"
    assert open_fds() == before, "no descriptor stays open for a fork to inherit"


def test_status_is_sent_only_when_it_changes(systemd: Systemd) -> None:
    notifier = SystemdNotifier({"NOTIFY_SOCKET": systemd.address})
    for text in ("starting", "starting", "healthy: größer", "healthy: größer", "starting"):
        notifier.status(text)
    assert systemd.received() == ["STATUS=starting", "STATUS=healthy: größer", "STATUS=starting"]


def test_a_status_that_was_not_delivered_is_sent_again(systemd: Systemd) -> None:
    notifier = SystemdNotifier({"NOTIFY_SOCKET": systemd.address})
    texts = [f"state {number}" for number in range(2000)]
    for text in texts:  # the arbiter must not wait for systemd, which does not read
        notifier.status(text)
    received = systemd.received()
    assert received[0] == "STATUS=state 0"
    assert len(received) < len(texts), "its buffer was full"
    notifier.status(texts[-1])
    assert systemd.received() == [f"STATUS={texts[-1]}"]


def test_a_missing_systemd_is_ignored(systemd: Systemd) -> None:
    notifier = SystemdNotifier({"NOTIFY_SOCKET": systemd.address})
    systemd.socket.close()
    before = open_fds()
    for tell in (notifier.ready, notifier.alive, notifier.reloading, notifier.stopping):
        tell()
    notifier.status("healthy")
    assert open_fds() == before


def test_only_a_successor_inherits_the_variables(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    notifier = SystemdNotifier()
    seen = subprocess.run(["env"], check=True, capture_output=True, text=True).stdout
    assert "PATH=" in seen
    assert not [name for name in given if f"{name}=" in seen]
    os.environ.update(notifier.environment())
    successor = SystemdNotifier()
    assert successor.watchdog_s == 2.0
    successor.ready()
    assert systemd.receive() == "READY=1"
    assert not given.keys() & os.environ.keys()


#: Stands for the pid of the test process.
OWN = "own"


@pytest.mark.parametrize(
    ("micros", "pid", "interval_s"),
    [
        ("30000000", "", 15.0),
        ("500000", OWN, 0.25),
        ("30000000", "1", None),
        ("30000000", f" {OWN}", None),
        ("0", "", None),
        ("", "", None),
        ("-5", "", None),
        ("1e6", "", None),
        ("²", "", None),
    ],
)
def test_the_watchdog_is_notified_at_half_its_interval(micros: str, pid: str, interval_s: float | None) -> None:
    pid = pid.replace(OWN, str(os.getpid()))
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": micros, "WATCHDOG_PID": pid, "OTHER": "1"}
    assert SystemdNotifier(environ).watchdog_s == interval_s
    assert environ == {"OTHER": "1"}


def test_without_a_socket_nothing_is_sent() -> None:
    notifier = SystemdNotifier({"WATCHDOG_USEC": "1000000"})
    before = open_fds()
    notifier.ready()
    notifier.status("healthy")
    assert (notifier.watchdog_s, open_fds()) == (None, before)


# OomKills


def write_events(path: Path, kills: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"low 0\nhigh 12\nmax 90\noom 4\noom_kill {kills}\noom_group_kill 3\n")


def test_kills_are_counted_between_two_calls(tmp_path: Path) -> None:
    path = tmp_path / "memory.events"
    write_events(path, 2)
    kills = OomKills(path)
    assert kills.new() == 0, "earlier kills do not count"
    write_events(path, 5)
    assert (kills.new(), kills.new()) == (3, 0)
    path.unlink()
    assert kills.new() is None
    write_events(path, 9)
    assert kills.new() is None, "it was not readable before"
    write_events(path, 10)
    assert kills.new() == 1


def test_without_a_counter_there_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "memory.events"
    kills = OomKills(path)
    write_events(path, 7)
    assert (kills.new(), kills.new()) == (None, 0), "it could not be read before"
    path.write_text("low 0\noom 1\n")
    assert kills.new() is None


@pytest.mark.parametrize(
    ("lines", "counted"),
    [
        ("0::/pool.slice/pool.service\n", True),
        ("12:memory:/x\n0::/pool.slice/pool.service\n", True),
        ("4:memory:/x\n", False),
        ("", False),
    ],
)
def test_the_own_cgroup_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, counted: bool) -> None:
    events = tmp_path / "root" / "pool.slice" / "pool.service" / "memory.events"
    write_events(events, 1)
    (tmp_path / "cgroup").write_text(lines)
    monkeypatch.setattr(oom_kills, "ROOT", tmp_path / "root")
    monkeypatch.setattr(oom_kills, "OWN", tmp_path / "cgroup")
    kills = OomKills()
    write_events(events, 3)
    assert kills.new() == (2 if counted else None)


# Slot locks

#: Holds a slot's lock until its stdin ends; with a third argument it forks a child that outlives it.
HOLDER = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from supervisor.arbiter.locks import lock_slot

lock_slot(SimpleNamespace(slots=Path(sys.argv[1])), int(sys.argv[2]))
child = 0
if len(sys.argv) > 3:
    child = os.fork()
    if child == 0:
        print(sys.stdin.readline(), flush=True)
        os._exit(0)
print("holds", child, flush=True)
sys.stdin.readline()
"""


NUMBERS = itertools.count()


class Holder:
    """A process that locks a slot."""

    def __init__(self, folder: Path, slot: int, *more: str) -> None:
        self.out = Path(f"{folder}.{next(NUMBERS)}.out")
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HOLDER, str(folder), str(slot), *more], stdin=subprocess.PIPE, stdout=out
            )

    def says(self, line: str) -> None:
        """Wait until it has printed the line."""
        eventually(lambda: re.search(rf"^{line}$", self.out.read_text(), re.MULTILINE), what=line)

    def waits(self) -> bool:
        """Return whether the kernel lists it as waiting for a lock."""
        lines = Path("/proc/locks").read_text().splitlines()
        return any("->" in line and f" {self.process.pid} " in line for line in lines)

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holders() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs /proc/locks")
def test_a_slot_is_locked_until_its_process_is_dead(holders: ExitStack, tmp_path: Path) -> None:
    folder = tmp_path / "slots"
    first = holders.enter_context(Holder(folder, 3))
    first.says("holds 0")
    holders.enter_context(Holder(folder, 4)).says("holds 0")
    second = holders.enter_context(Holder(folder, 3))
    eventually(second.waits)
    first.process.kill()
    second.says("holds 0")
    assert (folder.stat().st_mode & 0o777, (folder / "3.lock").stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_living_grandchild_does_not_hold_the_slot(holders: ExitStack, tmp_path: Path) -> None:
    first = holders.enter_context(Holder(tmp_path / "slots", 0, "forks"))
    first.says(r"holds [1-9]\d*")
    first.process.kill()
    first.process.wait(30)
    second = holders.enter_context(Holder(tmp_path / "slots", 0))
    second.says("holds 0")
    assert first.process.stdin is not None
    first.process.stdin.write(b"are you there\n")
    first.process.stdin.flush()
    first.says("are you there")


# Lines of children


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"event": "listening"}', '{"event": "listening", "service": "api", "pid": 7}'),
        ('{"service": "mine", "n": 1e2}', '{"service": "mine", "n": 1e2, "pid": 7}'),
        ('{"pid": 8, "service": "api"}', '{"pid": 8, "service": "api"}'),
        ("{}", ""),
        ("{no}", ""),
        ("[1]", ""),
    ],
)
def test_a_json_line_of_a_child_gets_the_fields_that_it_lacks(line: str, expected: str) -> None:
    assert _with_fields(line, {"service": "api", "pid": 7}) == expected
