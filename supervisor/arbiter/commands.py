"""The commands of a running pool, from the control socket and from signals.

No command waits: what takes long is started here, and `status` shows its progress.
"""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervisor.arbiter.rolling_restart import RollingRestart
from supervisor.arbiter.services import ServiceGroup
from supervisor.arbiter.shutdown import Shutdown
from supervisor.arbiter.spawn import KEEPER
from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.errors import SupervisorError, UsageError
from supervisor.shared_state import HeaderField
from supervisor.text import did_you_mean

#: Longer than anybody waits, and small enough to be added to a time (an int in JSON may have any size).
TIMEOUT_S_MAX = 1e9


@dataclass(frozen=True, slots=True)
class Commands:
    """Checks and carries out commands."""

    workers: WorkerGroup
    services: ServiceGroup
    shutdown: Shutdown
    restarts: RollingRestart
    log: Any
    #: Return the answers to `status`, with the password of Redis for the owner of the socket, and to `figures`.
    status: Callable[[], dict[str, Any]]
    figures: Callable[[], dict[str, Any]]
    #: Drains the pool: (reason, time limit in seconds or None for the configured one).
    stop: Callable[[str, float | None], None]

    def handle(self, cmd: str, args: dict[str, Any]) -> dict[str, Any]:
        """Carry out a command of the control socket. Raises SupervisorError if that is not possible."""
        commands: dict[str, Callable[..., dict[str, Any]]] = {
            "ping": lambda: {},
            "status": self.status,
            "figures": self.figures,
            "scale": self._scale,
            "restart": self._restart,
            "stop": self._stop,
            "pause": lambda: self._set_paused(True),
            "resume": lambda: self._set_paused(False),
        }
        command = commands.get(cmd)
        if command is None:
            raise UsageError(f"unknown command {cmd!r}{did_you_mean(cmd, commands)}")
        try:
            inspect.signature(command).bind(**args)
        except TypeError:
            allowed = ", ".join(inspect.signature(command).parameters) or "none"
            raise UsageError(f"{cmd}: wrong arguments: {', '.join(args) or 'none'}; allowed: {allowed}") from None
        return command(**args)

    def scale_by(self, change: int) -> None:
        """Add or remove workers (SIGTTIN, SIGTTOU)."""
        try:
            self._scale(self.workers.size + change)
        except SupervisorError as error:
            self.log.warning("scale refused", error=str(error))

    def restart_by_signal(self) -> None:
        """Start a rolling restart (SIGHUP)."""
        try:
            self._restart()
        except SupervisorError as error:
            self.log.warning("restart refused", error=str(error))

    def _scale(self, n: object) -> dict[str, Any]:
        if not isinstance(n, int) or isinstance(n, bool):
            raise UsageError(f"scale: n = {n!r} must be a whole number")
        self._require_running()
        before = self.workers.size
        self.workers.scale(n)
        self.log.info("scaled", workers=n, before=before)
        return {"workers": n, "before": before}

    def _restart(self, afresh: bool = False) -> dict[str, Any]:
        self._require_running()
        self.restarts.start(afresh=afresh is True)
        return {"accepted": True}

    def _stop(self, timeout_s: float | None = None) -> dict[str, Any]:
        if timeout_s is not None and not _is_timeout(timeout_s):
            raise UsageError(f"stop: timeout_s = {timeout_s!r} must be a number of seconds")
        self.stop("stop", timeout_s)
        return {"stopping": True}

    def _set_paused(self, paused: bool) -> dict[str, Any]:
        self._require_running()
        shared = self.workers.shared
        if paused != bool(shared.get(HeaderField.PAUSED)):
            shared.set(HeaderField.PAUSED_MS, int(time.time() * 1000))
            shared.set(HeaderField.PAUSED, int(paused))
            self.log.info("paused" if paused else "resumed")
        return {"paused": paused}

    def _require_running(self) -> None:
        if self.shutdown.begun:
            raise SupervisorError("the pool is draining")
        if self.services.get(KEEPER) is None:
            raise SupervisorError("the pool is starting; try again in a moment")


def _is_timeout(seconds: object) -> bool:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= TIMEOUT_S_MAX
