"""`supervisor scale|restart|stop|pause|resume`: requests to the arbiter, with `--wait` until they are carried out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import SECONDS, Examples, Value, command, config_option, load_settings_anyway, talk
from supervisor.cli.pool_lookup import require_pool
from supervisor.errors import EXIT_DRAIN, EXIT_FAILED, EXIT_OK, AnswerLostError, NotRunningError, SupervisorError
from supervisor.text import counted
from supervisor.values import WORKERS, Whole

if TYPE_CHECKING:
    from supervisor.settings.paths import PoolPaths

POLL_S = 0.02
#: An arbiter that re-executes itself is silent for a moment.
SILENCE_LIMIT_S = 5.0
#: Time for an embedded Redis to write its data, after the drain.
LEAVE_LIMIT_S = 10.0
#: Workers obey a pause within half a second.
OBEY_LIMIT_S = 3.0
PAUSED = "paused until `supervisor resume`; what ran was finished"
#: The arbiter removes its socket before it writes the exit report.
REPORT_LIMIT_S = 2.0

wait_option = click.option("--wait", is_flag=True, help="Wait until it is done, and show the progress.")
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=SECONDS,
    default=120.0,
    show_default=True,
    metavar="S",
    help="Wait at most this long.",
)


class _Scale(Examples):
    """Takes `-1` for a wrong number, not for an option that does not exist."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, except that a negative number is an argument."""
        is_negative = args and args[0][:1] == "-" and args[0][1:2].isdigit()
        return super().parse_args(ctx, ["--", *args] if is_negative else args)


class _Total(Whole):
    """A total number of workers. `+1` looks like one more and would otherwise be read as 1."""

    def parse(self, text: str) -> Any:
        """Read a number without a sign. Raises ValueError for one with a sign."""
        if re.fullmatch(r"\s*[+-]\d+\s*", text):
            raise ValueError(f"must be the total number of workers, {self.limits()}")
        return super().parse(text)


@command(
    """\
    supervisor scale 16
    supervisor scale 2 --wait""",
    kind=_Scale,
    short_help="Change the number of workers.",
)
@click.argument("workers", type=Value(_Total(WORKERS.least, WORKERS.most)), metavar="WORKERS")
@wait_option
@timeout_option
@config_option
def scale(workers: int, wait: bool, timeout_s: float, config: Path | None) -> int:
    """Set the number of workers. New workers start at once; surplus ones finish what they have in hand."""
    paths = _paths(config)
    _ask(paths, "scale", n=workers)
    what = f"scaling to {counted(workers, 'worker')}"
    if not wait:
        talk(f"{what}; `supervisor status` shows them")
        return EXIT_OK

    def progress(status: dict[str, Any]) -> Progress:
        states = {worker["slot"]: worker["state"] for worker in status["workers"]}
        missing = sum(1 for slot in range(workers) if states.get(slot) != "READY")
        left = missing + sum(1 for slot in states if slot >= workers)
        return Progress(f"{what}: {left} to go" if left else f"{what}: done", done=not left)

    return _watch(paths, progress, timeout_s, what)


@command(
    """\
    supervisor restart
    supervisor restart --wait    returns when all are new, or fails""",
    short_help="Replace all workers; code and settings are read again.",
)
@wait_option
@timeout_option
@config_option
def restart(wait: bool, timeout_s: float, config: Path | None) -> int:
    """Replace the workers one after the other, then the services. Configuration and handlers are read again.

    Returns when the new code is loaded. When it can't be loaded, the command fails, and nothing has changed.
    """
    paths = _paths(config)
    before = _ask(paths, "status")
    watch = _RestartWatch(before)
    _ask(paths, "restart")
    if wait:
        return _watch(paths, watch.to_the_end, timeout_s, "restart")
    if (before["operation"] or {}).get("phase") == "rolling":
        talk("a restart is in progress; another one follows it")
        return EXIT_OK
    _watch(paths, watch.until_loaded, timeout_s, "restart")
    talk("the workers are replaced one after the other; `supervisor status` shows how far it is")
    return EXIT_OK


class _RestartWatch:
    """Reads the progress of a restart from `status`."""

    def __init__(self, before: dict[str, Any]) -> None:
        """`before` is the status before the restart was requested."""
        self._incarnations = {worker["slot"]: worker["incarnation"] for worker in before["workers"]}
        self._pids = {service["name"]: service["pid"] for service in before["services"]}

    def until_loaded(self, status: dict[str, Any]) -> Progress:
        """Return the progress of loading the new code. Raises SupervisorError when it can't be loaded."""
        self._raise_failure(status)
        operation = status["operation"]
        if operation and operation["phase"] != "rolling":
            return Progress(_loading_text(operation))
        return Progress("loaded the new configuration and code", done=True)

    def to_the_end(self, status: dict[str, Any]) -> Progress:
        """Return the progress of the whole restart. Raises SupervisorError when it has failed."""
        self._raise_failure(status)
        workers, operation = status["workers"], status["operation"]
        if operation and operation["phase"] != "rolling":
            return Progress(_loading_text(operation))
        old = [worker for worker in workers if worker["incarnation"] <= self._incarnations.get(worker["slot"], 0)]
        # The embedded Redis is not restarted.
        services = [service for service in status["services"] if service["name"] != "redis"]
        late = [s for s in services if s["state"] != "READY" or s["pid"] == self._pids.get(s["name"])]
        if operation is None and (failed := [s["name"] for s in late if s["state"] == "FAILED"]):
            raise SupervisorError(f"{failed[0]} can't start with the new configuration; the pool's log names the error")
        if old or operation:
            return Progress(f"replaced {len(workers) - len(old)} of {counted(len(workers), 'worker')}")
        if late:
            return Progress(f"replacing {' and '.join(service['name'] for service in late)}")
        names = [counted(len(workers), "worker"), *(service["name"] for service in services)]
        return Progress(f"restarted {', '.join(names)}", done=True)

    def _raise_failure(self, status: dict[str, Any]) -> None:
        last = status["last_operation"]
        if status["operation"] is None and last and not last["ok"]:
            raise SupervisorError(f"not restarted: {last['error']}")


def _loading_text(operation: dict[str, Any]) -> str:
    if error := operation.get("error"):
        return f"the new code can't be loaded yet, trying again: {error}"
    return "checking the new configuration and code"


@command(
    """\
    supervisor stop
    supervisor stop --timeout 60""",
    short_help="Finish what is running, then end the pool.",
)
@click.option("--timeout", "timeout_s", type=SECONDS, metavar="S", help="Time to finish, instead of pool.drain_s.")
@config_option
def stop(timeout_s: float | None, config: Path | None) -> int:
    """End the pool: take no new messages, finish those in hand, end handlers that still run at the drain's deadline.

    Returns when the pool's process is gone, with its exit code: 7 when messages were left unfinished.
    """
    from supervisor.settings.paths import pool_paths

    loaded = load_settings_anyway(config)
    require_pool(loaded)
    settings, paths = loaded.settings, pool_paths(loaded.settings)
    limit_s = (settings.pool.drain_s if timeout_s is None else timeout_s) + LEAVE_LIMIT_S
    pid = _ask(paths, "status")["pid"]
    has_left = _end_of(pid, paths)
    asked_s = time.time()
    _ask(paths, "stop", **({} if timeout_s is None else {"timeout_s": timeout_s}))
    until_s = time.monotonic() + limit_s
    while not has_left():
        if time.monotonic() > until_s:
            talk(f"the supervisor (pid {pid}) is still running after {limit_s:g} s; `supervisor status` shows why")
            return EXIT_DRAIN
        time.sleep(POLL_S)
    return _tell_end(paths, pid, asked_s)


def _end_of(pid: int, paths: PoolPaths) -> Callable[[], bool]:
    """Return a function that tells whether the process has left.

    Call this before the process is asked to leave: afterwards its pid may belong to another process.
    """
    import psutil

    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        # It runs in another container and shares the folder: the only sign of its end is that it stops answering.
        return lambda: not _answers(paths)

    def has_left() -> bool:
        """Return True for a zombie too: reaping it is up to its parent."""
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return has_left


def _answers(paths: PoolPaths) -> bool:
    try:
        _ask(paths, "ping")
    except NotRunningError:
        return False
    return True


def _tell_end(paths: PoolPaths, pid: int, since_s: float) -> int:
    """Print how the pool ended, and return its exit code."""
    from supervisor.control import exit_report

    until_s = time.monotonic() + REPORT_LIMIT_S
    while (report := exit_report.read(paths, pid, since_s)) is None:
        if time.monotonic() > until_s:
            talk(f"the supervisor (pid {pid}) is gone without an exit report: it was killed, or it crashed")
            return EXIT_FAILED
        time.sleep(POLL_S)
    talk("stopped" if report.exit_code == EXIT_OK else f"stopped, but {report.reason}")
    return report.exit_code


@command(
    """\
    supervisor pause
    supervisor pause --wait      returns when nothing runs any more""",
    short_help="Start no messages until `resume`.",
)
@wait_option
@timeout_option
@config_option
def pause(wait: bool, timeout_s: float, config: Path | None) -> int:
    """Start no message on any worker until `supervisor resume`: no new ones, no retries, no replays.

    Returns when every worker knows of it. Messages that run are finished; with `--wait` it returns when none runs. The
    column `running` of `supervisor status` shows how many are left.
    """
    paths = _paths(config)
    was_paused = _ask(paths, "status")["paused"]
    _ask(paths, "pause")
    _until_paused(paths)
    if not wait:
        talk(f"{'was paused already,' if was_paused else 'paused'} until `supervisor resume`")
        return EXIT_OK

    def progress(status: dict[str, Any]) -> Progress:
        if not status["paused"]:
            raise SupervisorError("not paused: somebody has resumed the pool meanwhile")
        running = sum(worker["running"] for worker in status["workers"])
        unaware = sum(_unaware(worker) for worker in status["workers"])
        if unaware and not running:
            return Progress(f"paused: {counted(unaware, 'worker')} must still notice it")
        return Progress(f"paused: {counted(running, 'message')} still running" if running else PAUSED, done=not running)

    return _watch(paths, progress, timeout_s, "paused")


def _until_paused(paths: PoolPaths) -> None:
    """Wait until every worker knows of the pause: a worker looks twice a second, unless a handler keeps it busy."""
    until_s = time.monotonic() + OBEY_LIMIT_S
    while unaware := [w["slot"] for w in _ask(paths, "status")["workers"] if _unaware(w)]:
        if time.monotonic() > until_s:
            slots = ", ".join(map(str, unaware))
            talk(f"worker {slots} may start messages until its handler lets it look: it holds the event loop")
            return
        time.sleep(POLL_S)


def _unaware(worker: dict[str, Any]) -> bool:
    """Return whether a worker may still start messages. A starting worker looks before it reads anything."""
    return worker["state"] == "READY" and not worker["paused"]


@command(
    """\
    supervisor resume""",
    short_help="Start messages again after `pause`.",
)
@config_option
def resume(config: Path | None) -> None:
    """Start messages again after `supervisor pause`."""
    paths = _paths(config)
    was_paused = _ask(paths, "status")["paused"]
    _ask(paths, "resume")
    talk("resumed" if was_paused else "nothing was paused")


def _paths(config: Path | None) -> PoolPaths:
    from supervisor.settings.paths import pool_paths

    loaded = load_settings_anyway(config)
    require_pool(loaded)
    return pool_paths(loaded.settings)


def _ask(paths: PoolPaths, cmd: str, **args: Any) -> dict[str, Any]:
    from supervisor.control.client import request

    try:
        return request(paths, cmd, **args)
    except NotRunningError as error:
        if not isinstance(error.__context__, TimeoutError):
            raise NotRunningError(f"{error}\n`supervisor start` starts this folder's pool") from None
        changes = isinstance(error, AnswerLostError) and cmd not in ("status", "ping")
        silent = NotRunningError(f"{error}\nthe pool may have done it, or do it later" if changes else str(error))
        silent.exit_code = EXIT_FAILED  # it runs: starting another one does not help
        raise silent from None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an operation is."""

    text: str
    done: bool = False


def _watch(paths: PoolPaths, look: Callable[[dict[str, Any]], Progress], timeout_s: float, what: str) -> int:
    """Poll until `look` says that it is done, and print each change. Raises SupervisorError when it takes too long."""
    started_s = heard_s = time.monotonic()
    shown = ""
    while True:
        now_s = time.monotonic()
        try:
            status = _ask(paths, "status")
        except NotRunningError:
            if now_s - heard_s > SILENCE_LIMIT_S:
                raise
        else:
            heard_s = now_s
            progress = look(status)
            if progress.text != shown:
                talk(f"{progress.text} in {now_s - started_s:.1f} s" if progress.done else progress.text)
                shown = progress.text
            if progress.done:
                return EXIT_OK
        if now_s - started_s > timeout_s:
            raise SupervisorError(f"{what}: not done after {timeout_s:g} s; `supervisor status` shows why")
        time.sleep(POLL_S)
