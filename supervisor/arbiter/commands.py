"""What may be asked of a running pool, by signal or through the control socket.

Whatever takes long is begun and goes on by itself; `status` shows it. Nobody waits in here.
"""

from __future__ import annotations

import inspect
import math
import time
from typing import TYPE_CHECKING, Any

from supervisor.arbiter import reload
from supervisor.arbiter.check_process import CheckProcess
from supervisor.arbiter.rolling_restart import RollingRestart
from supervisor.arbiter.services import API, KEEPER
from supervisor.errors import SupervisorError, UsageError
from supervisor.settings.paths import redis_url
from supervisor.shared_state import HeaderField
from supervisor.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.arbiter.arbiter import Arbiter

PREFLIGHT = "preflight"
#: Longer than anybody waits, and still a time that can be added to another (an int in JSON may be of any size).
TIME_S_MAX = 1e9


class Commands:
    """The pool's commands."""

    def __init__(self, arbiter: Arbiter) -> None:
        """Acts on `arbiter`, which must be complete before the first command comes."""
        self._arbiter = arbiter
        self.rolling: RollingRestart | None = None
        #: How the last long operation ended.
        self.last: dict[str, Any] | None = None
        self._preflight: CheckProcess | None = None
        self._again = False
        self._commands: dict[str, Callable[..., dict[str, Any]]] = {
            "ping": self._ping,
            "status": self._status,
            "scale": self._scale,
            "restart": self._restart,
            "stop": self._stop,
            "pause": self._pause,
            "resume": self._resume,
        }

    def handle(self, cmd: str, args: dict[str, Any]) -> dict[str, Any]:
        """Carry out a command of the control socket. Raises SupervisorError when it can't be."""
        command = self._commands.get(cmd)
        if command is None:
            raise UsageError(f"there is no command {cmd!r}{did_you_mean(cmd, self._commands)}")
        try:
            inspect.signature(command).bind(**args)
        except TypeError:
            raise UsageError(f"{cmd}: wrong arguments: {', '.join(args) or 'none'}") from None
        return command(**args)

    @property
    def rolled(self) -> int | None:
        """The slot whose worker is being replaced on purpose."""
        return self.rolling.slot if self.rolling else None

    def describe(self) -> dict[str, Any] | None:
        """The operation that is under way."""
        if self._preflight is not None:
            return {"kind": "restart", "phase": "preflight"}
        return self.rolling.describe() if self.rolling else None

    # Commands

    def _ping(self) -> dict[str, Any]:
        return {}

    def _status(self) -> dict[str, Any]:
        # Whole, with its password: it goes to the owner of the socket, and into no log.
        return {**self._arbiter.status(), "redis_url": redis_url(self._arbiter.settings)}

    def _scale(self, n: object) -> dict[str, Any]:
        if not isinstance(n, int) or isinstance(n, bool):
            raise UsageError(f"scale: n = {n!r} must be a whole number")
        self._must_run()
        before = self._arbiter.pool.size
        self._arbiter.pool.scale(n)
        self._arbiter.log.info("scaled", workers=n, before=before)
        return {"workers": n, "before": before}

    def _restart(self) -> dict[str, Any]:
        self._must_run()
        self.restart()
        return {"accepted": True}

    def _stop(self, timeout_s: float | None = None) -> dict[str, Any]:
        if timeout_s is not None and not _is_time(timeout_s):
            raise UsageError("stop: timeout_s must be a number of seconds")
        self._arbiter.stop("stop", timeout_s)
        return {"stopping": True}

    def _pause(self) -> dict[str, Any]:
        return self._set_paused(1)

    def _resume(self) -> dict[str, Any]:
        return self._set_paused(0)

    def _set_paused(self, paused: int) -> dict[str, Any]:
        self._must_run()
        self._arbiter.shared.set(HeaderField.PAUSED, paused)
        self._arbiter.log.info("paused" if paused else "resumed")
        return {"paused": bool(paused)}

    def _must_run(self) -> None:
        if self._arbiter.shutdown.begun:
            raise SupervisorError("the pool is draining")
        if self._arbiter.services.get(KEEPER) is None:
            raise SupervisorError("the pool is starting; try again in a moment")

    # Signals

    def scale_by(self, amount: int) -> None:
        """One worker more or less."""
        try:
            self._scale(self._arbiter.pool.size + amount)
        except SupervisorError as error:
            self._arbiter.log.warning("scale refused", error=str(error))

    def restart_by_signal(self) -> None:
        """SIGHUP."""
        try:
            self._restart()
        except SupervisorError as error:
            self._arbiter.log.warning("restart failed", error=str(error))

    # The rolling restart

    def restart(self) -> None:
        """Read code and configuration afresh and replace the workers one by one; one more if one is under way."""
        if self._preflight is not None:
            return
        if self.rolling is not None:
            self._again = True
            return
        arbiter = self._arbiter
        try:
            self._preflight = CheckProcess(
                arbiter.loop, arbiter.children, self._fork_preflight, reload.PREFLIGHT_LIMIT_S, self._judged
            )
        except (OSError, SupervisorError) as error:
            arbiter.stack_dumps.drop(PREFLIGHT)
            self._end(str(error))

    def abandon(self) -> None:
        """The pool is about to end: nobody waits for the new code any more."""
        if self._preflight is not None:
            self._preflight.kill()

    def roll(self) -> None:
        """Replace the workers that run now."""
        self.rolling = RollingRestart(self._arbiter.pool, self._arbiter.settings.pool.drain_s)
        self.step()

    def step(self) -> None:
        """Go on with what is under way."""
        rolling = self.rolling
        if rolling is None:
            return
        wait_s = rolling.step()
        if wait_s < math.inf:
            self._arbiter.loop.at(time.monotonic() + wait_s, self.step)
        if not rolling.is_over or self.rolling is None:
            return
        self.rolling = None
        if not rolling.error:
            for name in (KEEPER, API):
                self._arbiter.services.restart(name, self._arbiter.settings.pool.drain_s)
            self._arbiter.services.turn()
        self._end(rolling.error)
        if self._again:  # also after a failure: what was asked for since may mend it
            self._again = False
            self.restart()

    def _fork_preflight(self, out_fd: int) -> int:
        return self._arbiter.fork(PREFLIGHT, lambda: reload.exec_preflight(self._arbiter.settings, out_fd))

    def _judged(self, code: int, report: dict[str, Any]) -> None:
        self._preflight = None
        self._arbiter.stack_dumps.drop(PREFLIGHT)
        if self._arbiter.shutdown.begun:
            return
        if code != 0:
            self._end(f"nothing was changed, since the new code or configuration is unusable: {report.get('error')}")
            return
        try:
            reload.exec_successor(self._arbiter)
        except OSError as error:
            self._end(f"nothing was changed, since this process could not be replaced: {error}")

    def _end(self, error: str) -> None:
        self.last = {"kind": "restart", "ok": not error, "error": error or None}
        if error:
            self._arbiter.log.error("restart failed", error=error)
        else:
            self._arbiter.log.info("restarted", workers=self._arbiter.pool.size)


def _is_time(seconds: object) -> bool:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= TIME_S_MAX
