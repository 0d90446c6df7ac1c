"""The supervisor's own log: one line an event, on stderr.

1. For people on a terminal, JSON lines otherwise; `[log] format` chooses.
2. A line is one write to the inherited descriptor: lines of several processes never mix, and no
   process is in the path of another's log.
3. Nothing is kept open and no thread is started, so it is safe before and after a fork.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from supervisor.settings.model import LogSettings, Settings

#: A fault that goes on is told this often.
COMPLAIN_EVERY_S = 5.0
_STDERR_FD = 2


class _OneWrite:
    """A structlog logger that hands each line to the kernel in one call."""

    def msg(self, message: str) -> None:
        try:
            os.write(_STDERR_FD, message.encode(errors="backslashreplace") + b"\n")
        except OSError:  # a closed or full stderr must not end a worker
            pass

    debug = info = warning = error = critical = msg


def logger(settings: LogSettings, **bound: Any) -> Any:
    """A structlog logger with `bound` in each of its lines."""
    human = settings.format == "human" or (settings.format == "auto" and sys.stderr.isatty())
    colours = human and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    last: Any = structlog.dev.ConsoleRenderer(colors=colours) if human else structlog.processors.JSONRenderer()
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human)
    return structlog.wrap_logger(
        _OneWrite(),
        processors=[structlog.processors.add_log_level, stamp, last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.level.upper())),
    ).bind(**bound)


def worker_logger(settings: Settings, slot: int) -> Any:
    """The log of the worker in `slot`."""
    return logger(settings.log, slot=slot, pid=os.getpid())


def service_logger(settings: Settings, name: str) -> Any:
    """The log of a service."""
    return logger(settings.log, service=name, pid=os.getpid())


def complainer(log: Any) -> Callable[[str, BaseException], None]:
    """`complain(what, error)`: a warning, at most one every 5 s, which tells how many it stands for."""
    state: MutableMapping[str, float] = {"last_s": float("-inf"), "left_out": 0}

    def complain(what: str, error: BaseException) -> None:
        now_s = time.monotonic()
        if now_s - state["last_s"] < COMPLAIN_EVERY_S:
            state["left_out"] += 1
            return
        left_out, state["left_out"], state["last_s"] = int(state["left_out"]), 0, now_s
        more = {"left_out": left_out} if left_out else {}
        log.warning("Redis does not do it, waiting", doing=what, error=f"{type(error).__name__}: {error}", **more)

    return complain
