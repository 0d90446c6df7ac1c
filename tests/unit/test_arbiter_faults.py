"""What the arbiter's parts do when something fails, or comes at an odd moment."""

import gc
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.arbiter import gil_watch, outputs, reload
from supervisor.arbiter.locks import lock_state_dir
from supervisor.arbiter.loop import Loop, Timer
from supervisor.arbiter.outputs import ChildOutput, Outputs
from supervisor.arbiter.reload import ReloadState
from supervisor.arbiter.rolling_restart import RollingRestart, _Roll
from supervisor.arbiter.services import NAMES, ServiceGroup
from supervisor.arbiter.spawn import API, RELAY
from supervisor.arbiter.stack_dumps import StackDumps
from supervisor.control import server as control_server
from supervisor.core.slot import Limits, Slot, State
from supervisor.errors import ConfigError
from supervisor.settings.model import Settings
from supervisor.settings.paths import paths_in
from supervisor.shared_state import SharedState
from supervisor.standard_streams import STDERR

LOG: Any = SimpleNamespace(**dict.fromkeys(("debug", "info", "warning", "error"), lambda *_words, **_more: None))
API_SLOT = NAMES.index(API)


class Clock:
    """The loop's timers, none of which comes."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_at(self, due_s: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(due_s, callback))
        return self.timers[-1]

    @property
    def waiting(self) -> int:
        return sum(not timer.cancelled for timer in self.timers)


# Services that a reload turns off and on


class Services:
    """A group of services that starts no process."""

    def __init__(self) -> None:
        self.started: list[str] = []
        children: Any = SimpleNamespace(add=lambda *_: None, send=lambda *_: None, kill=lambda *_: None)
        self.clock = clock = Clock()
        loop: Any = clock
        limits = Limits(boot_s=60, beat_s=60, drain_s=60)
        self.group = ServiceGroup(SharedState(), loop, children, StackDumps(), limits, LOG, lambda: None)
        self.spawner: Any = SimpleNamespace(
            redis=None,
            keeper=None,
            relay=lambda: self._start(RELAY),
            api=lambda _process: self._start(API),
            http=SimpleNamespace(is_served=lambda _process: True),
        )

    def _start(self, name: str) -> int:
        self.started.append(name)
        return 1000 + len(self.started)

    def want_api(self, processes: int) -> None:
        self.group.apply_settings(
            Settings(api={"enabled": processes > 0, "processes": max(1, processes)}), self.spawner
        )
        self.group.check()


@pytest.mark.parametrize("state", [State.FAILED, State.BACKOFF])
def test_a_service_that_is_turned_off_while_it_is_down_is_gone_and_starts_again_later(state: State) -> None:
    services = Services()
    services.want_api(1)
    slots = services.group.slots
    slots[API_SLOT] = replace(slots[API_SLOT], state=state, pid=0, next_start_s=1e12)
    services.want_api(0)
    assert slots == {}, "status would call the pool degraded for ever"
    services.want_api(1)
    assert services.started == [API, API] and slots[API_SLOT].living


def test_a_service_that_is_turned_on_again_while_it_finishes_is_wanted() -> None:
    services = Services()
    services.want_api(2)
    services.want_api(1)
    assert services.group.slots[API_SLOT + 1].state is State.DRAINING
    services.want_api(2)
    assert all(slot.wanted for slot in services.group.slots.values())


def test_a_quick_stop_starts_no_service() -> None:
    services = Services()
    services.want_api(1)
    slots = services.group.slots
    slots[API_SLOT] = replace(slots[API_SLOT], state=State.BACKOFF, pid=0, next_start_s=0.0)
    services.group.kill_service(API)
    services.group.check()
    assert services.started == [API]


def test_a_check_that_fails_is_followed_by_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_slot: Slot) -> Any:
        raise ZeroDivisionError

    services = Services()
    services.want_api(1)
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(services.group, "heartbeat", broken)
        before = len(services.clock.timers)
        services.group.check()
    assert len(services.clock.timers) == before + 1 and services.clock.waiting == 1


# Restarts


def restarts(clock: Clock) -> tuple[RollingRestart, list[Any]]:
    """A restart without a pool, and its preflights, which end when `done` is called."""
    preflights: list[Any] = []

    def start(done: Callable[[int, dict[str, Any]], None]) -> Any:
        preflights.append(SimpleNamespace(done=done, kill=lambda: None))
        return preflights[-1]

    parts: dict[str, Any] = {
        "workers": None,
        "services": None,
        "shutdown": SimpleNamespace(begun=False),
        "loop": clock,
        "log": LOG,
        "start_preflight": start,
        "exec_successor": None,
    }
    return RollingRestart(drain_s=1, **parts), preflights


def test_a_plain_restart_does_not_undo_one_that_begins_the_check_again() -> None:
    found, preflights = restarts(Clock())
    found.start()
    found.start(afresh=True)
    found.start()
    preflights[0].done(137, {"error": "ended by SIGKILL"})
    assert len(preflights) == 2 and found.last is None


def test_a_bug_while_the_image_is_replaced_is_a_failed_restart() -> None:
    def broken(_report: dict[str, Any]) -> None:
        raise ZeroDivisionError("our own bug")

    found, preflights = restarts(Clock())
    found.exec_successor = broken
    found.start()
    preflights[0].done(0, {})
    assert found.last is not None and not found.last["ok"] and "our own bug" in found.last["error"]


def test_restarts_that_are_asked_for_do_not_multiply_the_attempts_to_load_the_code() -> None:
    clock = Clock()
    found, preflights = restarts(clock)
    found.hold("no code", 0.0)
    for _ in range(3):
        found.start()
        preflights[-1].done(4, {"error": "no code"})
    assert clock.waiting == 1


def test_a_worker_that_could_not_start_while_it_was_replaced_is_started_again() -> None:
    started: list[int] = []
    slot = Slot(0, state=State.STARTING, pid=7, incarnation=3)
    workers: Any = SimpleNamespace(slots={0: slot}, drain=lambda *_: None, start_now=started.append)
    roll = _Roll(workers, 1.0, at_once=False)
    roll.step()
    workers.slots[0] = replace(slot, state=State.FAILED, pid=0)
    roll.step()
    assert started == [0] and not roll.is_over


def test_signals_are_not_blocked_for_ever_when_the_image_can_not_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ReloadState(0, 0, 0, [], [], 1, {}, {}, [], None, [], 0, "")
    told: list[str] = []
    systemd: Any = SimpleNamespace(reloading=lambda: told.append("reloading"), ready=lambda: told.append("ready"))
    loop: Any = SimpleNamespace(take_signals=list)
    location: Any = None

    def none_left(*_: object) -> int:
        raise OSError(24, os.strerror(24))

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        with monkeypatch.context() as patched, pytest.raises(OSError, match="Too many open files"):
            patched.setattr(os, "open", none_left)
            reload.exec_successor(state, location, loop, systemd, preloaded=True)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert told == ["reloading", "ready"]


# Files and descriptors


def test_a_state_directory_without_room_for_locks_is_not_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "slots").touch()
    with pytest.raises(ConfigError) as refused:
        lock_state_dir(paths_in(tmp_path))
    assert str(refused.value).startswith(f"state_dir: {tmp_path / 'slots'}: File exists; ")


def test_a_control_socket_that_can_not_be_made_is_closed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the control socket: No such file or directory"):
        control_server.listen(paths_in(tmp_path / "missing"))
    gc.collect()  # an open socket would be reported


def test_a_system_that_does_not_count_a_threads_waits_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: "Name: x\n" if path.name == "status" else read(path))
    assert gil_watch.sample(os.getpid()) is None


def test_a_process_that_prints_on_and_on_does_not_keep_the_pool_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "LAST_S", 0.05)
    found = Outputs(Loop(print), human=True)
    read, write = os.pipe()
    found._watch(ChildOutput(read, STDERR, "worker 0", {}))
    monkeypatch.setattr(found, "_read", lambda _origin: True)  # there is always more
    found.finish()
    os.close(read)
    os.close(write)
