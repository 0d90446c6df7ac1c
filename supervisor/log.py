"""The log of all processes of a pool: lines on stderr, readable text on a terminal, JSON otherwise.

1. Each process writes each line directly to the stderr that it inherited.
2. A reader that stops reading costs lines, never time: a line that would block is dropped and counted. The processes
   share one pipe, so another process may fill it after a check for room; only a non-blocking descriptor is safe.
3. Events that may come with every message are logged at most once in five seconds.
"""

import contextlib
import functools
import logging
import os
import select
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

import structlog

from supervisor.settings.model import Settings
from supervisor.text import error_summary

#: A pipe takes this much in one piece, and poll tells when it has room for it (POSIX: PIPE_BUF).
PIECE_BYTES = 4096
#: The same fault is logged once within this time.
QUIET_S = 5.0
#: How many other failing operations are named on one line.
_ALSO_MAX = 3
_REDIS = "redis"
STDERR = 2


class StderrLines:
    """Writes lines to stderr; drops a line when that would block."""

    def __init__(self) -> None:
        self.dropped = 0

    def msg(self, line: str) -> None:
        """Write one line."""
        if self.dropped:
            line = f"{line}\n({self.dropped} lines before this one were dropped, since nothing was reading)"
        data = line.encode(errors="replace") + b"\n"
        for start in range(0, len(data), PIECE_BYTES):
            if not _write(data[start : start + PIECE_BYTES]):
                self.dropped += 1
                return
        self.dropped = 0

    log = debug = info = warn = warning = error = critical = exception = msg


def _write(piece: bytes) -> bool:
    try:
        fd = _nonblocking_stderr()
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if not poll.poll(0):
            return False
        os.write(fd, piece)
    except OSError:  # the reader is gone, stderr is closed or its disk is full: there is no way left to report it
        return False
    return True


@functools.cache
def _nonblocking_stderr() -> int:
    """Open a pipe again, non-blocking: the flags of the shared descriptor belong to other processes too.

    It is opened once, before the first fork, and inherited by every child.
    """
    with contextlib.suppress(OSError):  # it is closed, or another user's
        if sys.platform == "linux" and stat.S_ISFIFO(os.fstat(STDERR).st_mode):
            return os.open(f"/proc/self/fd/{STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return STDERR


def is_human(settings: Settings) -> bool:
    """Return whether the log is readable text: as configured, or because stderr is a terminal."""
    if settings.log.format == "auto":
        return os.isatty(STDERR)
    return settings.log.format == "human"


def has_colours() -> bool:
    """Return whether the terminal shows colours and the user wants them (no-color.org)."""
    return os.isatty(STDERR) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def logger(settings: Settings, **bound: Any) -> Any:
    """Make a structlog logger for this process; `bound` is on every line."""
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_human(settings) else "iso", utc=not is_human(settings)),
        structlog.processors.format_exc_info,
        _tidy,
    ]
    if is_human(settings):
        processors.append(structlog.dev.ConsoleRenderer(colors=has_colours(), pad_event_to=0, sort_keys=False))
    else:
        processors.append(structlog.processors.JSONRenderer(default=str))
    level = logging.getLevelNamesMapping()[settings.log.level.upper()]
    made: Any = structlog.wrap_logger(
        StderrLines(),
        processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    return made.bind(**bound)


def worker_logger(settings: Settings, slot: int) -> Any:
    """Make the logger of the worker in `slot`."""
    return logger(settings, slot=slot, pid=os.getpid())


def service_logger(settings: Settings, name: str) -> Any:
    """Make the logger of a service."""
    return logger(settings, service=name, pid=os.getpid())


class Limiter:
    """Lets each key through once in `QUIET_S`, and counts how often it was held back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._passed: dict[str, tuple[float, int]] = {}

    def held_back(self, key: str) -> int | None:
        """Return None to hold `key` back, or how often it was held back since it was last let through."""
        now_s = self._clock()
        passed_s, count = self._passed.get(key, (float("-inf"), 0))
        if now_s - passed_s < QUIET_S:
            self._passed[key] = passed_s, count + 1
            return None
        self._passed[key] = now_s, 0
        return count


class FaultLog:
    """Logs faults: each kind at most once in `QUIET_S`, and an outage of Redis as one, with its end.

    An event is a constant phrase; all that varies is a field.

        faults("handler failed", error, key=handler, id=id)      any fault; `key` sets apart what is logged apart
        faults.redis("can't read", error, stream=s, group=g)     this operation failed because of Redis
        faults.resolved("can't read", stream=s, group=g)         it works again: call it after each success, it is cheap

    The fields of `redis` say which operation it is, so `resolved` is given the same ones.
    """

    def __init__(self, log: Any) -> None:
        """`log` is a structlog logger."""
        self._log = log
        self._limiter = Limiter()
        #: The operations that fail now because of Redis, oldest first.
        self._open: dict[str, None] = {}
        #: The fields of the last line about an outage; empty when no outage is on record.
        self._logged: dict[str, object] = {}
        #: Other errors since that line: a lost connection often comes before its cause is known.
        self._reasons: dict[str, None] = {}

    def __call__(
        self, event: str, error: BaseException, *, level: str = "warning", key: str = "", **fields: object
    ) -> None:
        """Log the fault, unless one with this event, key and type of error was logged within `QUIET_S`."""
        repeated = self._limiter.held_back(f"{event} {key} {type(error).__name__}")
        if repeated is not None:
            getattr(self._log, level)(event, error=error_summary(error), repeated=repeated or None, **fields)

    def redis(self, event: str, error: BaseException, **fields: object) -> None:
        """Log that an operation failed because of Redis; the line names the other operations that fail too."""
        operation = _operation(event, fields)
        self._open[operation] = None
        repeated, reason = self._limiter.held_back(_REDIS), error_summary(error)
        if repeated is None:
            if reason != self._logged.get("error") and len(self._reasons) < _ALSO_MAX:
                self._reasons[reason] = None
            return
        others = [other for other in self._open if other != operation]
        also = ", ".join(others[:_ALSO_MAX]) + (", ..." if len(others) > _ALSO_MAX else "")
        self._logged, self._reasons = {"what": operation, "error": reason}, {}
        self._log.warning(event, **fields, error=reason, also=also or None, repeated=repeated or None)

    def resolved(self, event: str, **fields: object) -> None:
        """Note that an operation works; logged when nothing fails any more and the outage was logged."""
        if not self._open:
            return
        self._open.pop(_operation(event, fields), None)
        if self._logged and not self._open:
            self._log.info("works again", what=self._logged["what"], reasons=list(self._reasons) or None)
            self._logged, self._reasons = {}, {}


def _operation(event: str, fields: dict[str, object]) -> str:
    """`can't read stream=events group=mail`."""
    return " ".join([event, *(f"{name}={value}" for name, value in fields.items())])


def _tidy(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Put time, level and event first, and remove empty fields."""
    first: dict[str, Any] = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return {**first, **{key: value for key, value in event.items() if value is not None}}
