"""An arbiter with stand-in children: they have no Redis connection, and a file defines their behaviour.

Run as `python -P standin_main.py CONFIG [--burst]`. The file `orders.json` beside CONFIG maps
a slot (or "*") to a behaviour, and is read by each new worker. All else is the real arbiter.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from supervisor.arbiter.bootstrap import run
from supervisor.arbiter.spawn import EntryPoints
from supervisor.cli.main import run as run_cli
from supervisor.errors import EXIT_OK, SupervisorError
from supervisor.settings.load import Loaded, load
from supervisor.settings.model import Settings
from supervisor.shared_state import HeaderField, SharedState, SlotField

FOLDER = Path(sys.argv[1]).parent
BEAT_S = 0.02


class Worker:
    """One stand-in worker."""

    def __init__(self, shared: SharedState, slot: int, burst: bool) -> None:
        self.shared, self.fields, self.slot, self.burst = shared, shared.slot(slot), slot, burst
        self.terms = 0
        orders = json.loads((FOLDER / "orders.json").read_text())
        self.behaviour = orders.get(str(slot), orders.get("*", "good"))
        signal.signal(signal.SIGTERM, self._count)

    def _count(self, *_: object) -> None:
        self.terms += 1

    def beat(self) -> None:
        self.fields.set(SlotField.BEAT_NS, time.monotonic_ns())

    def run(self) -> int:
        note("spawned", self.slot, terms=0)
        before = getattr(self, f"before_{self.behaviour}", None)
        if before is not None:
            before()
        self.beat()
        self.fields.set(SlotField.READY_NS, time.monotonic_ns())
        code = getattr(self, f"do_{self.behaviour}", self.do_good)()
        self.fields.set(SlotField.EXIT_CODE, 1 + code)
        note(
            "left",
            self.slot,
            terms=self.terms,
            handover_to=self.fields.get(SlotField.HANDOVER_TO),
            rescans=self.fields.get(SlotField.RESCAN_PENDING),
        )
        return code

    def until_told(self) -> None:
        while not self.terms:
            self.beat()
            time.sleep(BEAT_S)

    def do_good(self) -> int:
        self.until_told()
        time.sleep(0.1)  # so that a second signal would be seen
        return EXIT_OK

    def do_slow_drain(self) -> int:
        self.until_told()
        until_s = time.monotonic() + 2
        while time.monotonic() < until_s:
            self.beat()
            time.sleep(BEAT_S)
        return EXIT_OK

    def do_stubborn(self) -> int:
        self.fields.set(SlotField.IN_FLIGHT, 1)
        self.note_started()
        while True:
            self.beat()
            time.sleep(BEAT_S)

    def do_hang(self) -> int:
        if self.fields.get(SlotField.INCARNATION) > 1:
            return self.do_good()
        while True:
            time.sleep(3600)

    def do_overdue(self) -> int:
        if self.fields.get(SlotField.INCARNATION) > 1:
            return self.do_good()
        self.fields.set(SlotField.DEADLINE_NS, time.monotonic_ns() + 200_000_000)
        return self.do_stubborn()

    def do_long(self) -> int:
        """Set a deadline some seconds ahead, once."""
        self.fields.set(SlotField.DEADLINE_NS, time.monotonic_ns() + 5_000_000_000)
        return self.do_good()

    def before_boot_hang(self) -> None:
        if self.fields.get(SlotField.INCARNATION) == 1:
            time.sleep(3600)

    def do_exit0(self) -> int:
        return EXIT_OK if self.burst or self.fields.get(SlotField.INCARNATION) == 1 else self.do_good()

    def do_recycle(self) -> int:
        return 80 if self.fields.get(SlotField.INCARNATION) < 4 else self.do_good()

    def before_config(self) -> None:
        self.fields.set(SlotField.EXIT_CODE, 1 + 78)
        os._exit(78)

    def do_config_later(self) -> int:
        return 78 if self.fields.get(SlotField.INCARNATION) > 1 else self.do_good()

    def before_crash(self) -> None:
        os._exit(3)

    def do_crash_soon(self, after_s: float = 0.3) -> int:
        until_s = time.monotonic() + after_s
        while time.monotonic() < until_s and not self.terms:
            self.beat()
            time.sleep(BEAT_S)
        return 0 if self.terms else 3

    def do_crash_late(self) -> int:
        return self.do_crash_soon(2.0)

    def do_crash_in_turn(self) -> int:
        """Crash in turn with the other of slots 0 and 1; a file marks whose turn it is."""
        turn = FOLDER / f"turn{self.slot}"
        if self.slot == 0 and self.fields.get(SlotField.INCARNATION) == 1:
            turn.touch()
        while not turn.exists() and not self.terms:
            self.beat()
            time.sleep(BEAT_S)
        if self.terms:
            return EXIT_OK
        turn.rename(FOLDER / f"turn{1 - self.slot}")
        note("turn", self.slot)
        return 3

    def do_grandchild(self) -> int:
        child = subprocess.Popen(["sleep", "3600"])
        note("grandchild", self.slot, grandchild=child.pid)
        return self.do_good()

    def do_started_message(self) -> int:
        self.note_started()
        return self.do_good()

    def note_started(self) -> None:
        consumer = self.fields.consumer("events", "group")
        assert consumer is not None
        consumer.set_started(1234, 5)


def note(what: str, slot: int, **more: Any) -> None:
    """Append a line for the test, in one write, so that lines of several processes are not mixed."""
    line = json.dumps({"what": what, "slot": slot, "pid": os.getpid(), "at_s": time.monotonic(), **more}) + "\n"
    fd = os.open(FOLDER / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


def worker(_settings: Settings, _specs: Any, shared: SharedState, slot: int, burst: bool, _crash: Any) -> int:
    return Worker(shared, slot, burst).run()


def keeper(_settings: Settings, _specs: Any, shared: SharedState, token: str) -> int:
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    note("keeper", -1, token=token)
    while not told:
        shared.set(HeaderField.KEEPER_REDIS_OK, 1)
        shared.set(HeaderField.KEEPER_BEAT_NS, time.monotonic_ns())
        time.sleep(BEAT_S)
    return EXIT_OK


def boot(_settings: Settings, _specs: Any, _token: str, out_fd: int) -> int:
    answer = {"redis": {"url": "redis://nowhere", "version": "Redis 0", "durability": "none"}, "streams": ["events"]}
    os.write(out_fd, json.dumps(answer).encode())
    return EXIT_OK


def boot_refused(_settings: Settings, _specs: Any, _token: str, out_fd: int) -> int:
    os.write(out_fd, json.dumps({"error": "Redis at redis://nowhere does not answer"}).encode())
    return 3


def boot_silent(_settings: Settings, _specs: Any, _token: str, _out_fd: int) -> int:
    while True:
        time.sleep(3600)


def api(_loaded: Loaded) -> tuple[list[str], dict[str, str]]:
    text = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); time.sleep(3600)"
    return [sys.executable, "-c", text], dict(os.environ)


def main() -> int:
    loaded = load(Path(sys.argv[1]))
    tricks = loaded.settings.app
    kept: list[Any] = []
    if tricks.get("thread"):
        kept.append(threading.Thread(target=time.sleep, args=(3600,), daemon=True, name="stranger"))
        kept[-1].start()
    if tricks.get("socket"):
        kept.append(socket.socket())
    entry = {"refused": boot_refused, "silent": boot_silent}.get(tricks.get("boot", ""), boot)
    try:
        return run(loaded, burst="--burst" in sys.argv, entry_points=EntryPoints(entry, worker, keeper, api))
    except SupervisorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    assert run_cli  # what the real command imports is imported here too: it must not make a fork unsafe
    sys.exit(main())
