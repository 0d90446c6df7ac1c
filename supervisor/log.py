"""The log of all processes of a pool: lines on stderr, readable text on a terminal, JSON otherwise.

1. Each process writes each line directly to the stderr of the pool.
2. A reader that stops reading costs lines, never time: a line that would block is dropped and counted
   (`standard_streams`).
3. Events that may come with every message are logged at most once in five seconds.
"""

import fcntl
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import structlog

from supervisor.settings.model import Settings
from supervisor.shared_state import HeaderField, SharedState
from supervisor.standard_streams import STDERR, Output
from supervisor.text import error_summary, public_summary, public_traceback

#: The same fault is logged once within this time.
QUIET_S = 5.0
#: How many other failing operations are named on one line.
_ALSO_MAX = 3
_REDIS = "redis"
#: Not SUPERVISOR_*: those are settings.
LOG_FD_VARIABLE = "_SUPERVISOR_LOG_FD"


class StderrLines:
    """Writes lines to stderr; drops a line when that would block."""

    def msg(self, line: str) -> None:
        """Write one line."""
        stderr().write(line.encode(errors="replace") + b"\n")

    log = debug = info = warn = warning = error = critical = exception = msg


@functools.cache
def stderr() -> Output:
    """Return the stderr of the pool.

    It is opened once, before the first fork: the children inherit it, and get an own descriptor 2 for what handlers
    print. The HTTP service, which is exec'd, finds it through its environment.
    """
    inherited = os.environ.pop(LOG_FD_VARIABLE, "")
    if not inherited:
        return Output(STDERR)
    output = Output(int(inherited))
    os.close(int(inherited))
    return output


def exported_stderr() -> dict[str, str]:
    """Make the log's descriptor inheritable and return the variable that names it; in a process that will exec."""
    os.set_inheritable(stderr().fd, True)
    return {LOG_FD_VARIABLE: str(stderr().fd)}


def is_human(settings: Settings) -> bool:
    """Return whether the log is readable text: as configured, or because stderr is a terminal."""
    if settings.log.format == "auto":
        return os.isatty(stderr().fd)
    return settings.log.format == "human"


def has_colours() -> bool:
    """Return whether the terminal shows colours and the user wants them (no-color.org)."""
    return os.isatty(stderr().fd) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


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


def worker_logger(settings: Settings, slot: int, **bound: Any) -> Any:
    """Make the logger of the worker in `slot`."""
    return logger(settings, slot=slot, pid=os.getpid(), **bound)


def service_logger(settings: Settings, name: str) -> Any:
    """Make the logger of a service."""
    return logger(settings, service=name, pid=os.getpid())


def log_records(settings: Settings, log: Any, fields: Callable[[], dict[str, Any]] = dict) -> None:
    """Send what is logged with `logging` to `log`, unless the project has configured handlers of its own.

    `fields` returns what describes the message that is handled now.
    """
    level = logging.getLevelNamesMapping()[settings.log.level.upper()]
    # Python uses this handler where no other one was configured, also when that happens later.
    logging.lastResort = _RecordHandler(log, level, fields)


def lower_log_level(settings: Settings) -> None:
    """Let `logging` take records from `[log] level` on, unless the project, which was imported, has configured it."""
    root = logging.getLogger()
    if root.level == logging.WARNING and not _is_logging_configured():
        root.setLevel(logging.getLevelNamesMapping()[settings.log.level.upper()])


def _is_logging_configured() -> bool:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = [handler for found in loggers for handler in getattr(found, "handlers", ())]
    return any(not isinstance(handler, logging.NullHandler) for handler in handlers)


class _RecordHandler(logging.Handler):
    """Writes the records of `logging` as lines of the pool's log."""

    def __init__(self, log: Any, level: int, fields: Callable[[], dict[str, Any]]) -> None:
        super().__init__(level)
        self._log, self._fields = log, fields

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record with its level, its logger and the message that is handled."""
        try:
            known = max(logging.DEBUG, min(record.levelno // 10 * 10, logging.CRITICAL))
            self._log.log(
                known, record.getMessage(), logger=record.name, **self._fields(), exc_info=record.exc_info or None
            )
        except Exception:
            self.handleError(record)


class Limiter:
    """Lets each key through once in `QUIET_S`, and counts how often it was held back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._passed: dict[str, tuple[float, int]] = {}

    def held_back(self, key: str, may_pass: Callable[[], bool] = lambda: True) -> int | None:
        """Return None to hold `key` back, or how often it was held back since it was last let through."""
        now_s = self._clock()
        passed_s, count = self._passed.get(key, (float("-inf"), 0))
        if now_s - passed_s < QUIET_S or not may_pass():
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

    def __init__(self, log: Any, may_log_outage: Callable[[], bool] = lambda: True) -> None:
        """Log to `log`, a structlog logger. `may_log_outage` is asked before a line about Redis: `outage_turn`."""
        self.log = log
        self._may_log_outage = may_log_outage
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
        """Log the fault, unless one with this event, key and type of error was logged within `QUIET_S`.

        The content of a message, which may be private, is in its dead letter and not in the log.
        """
        repeated = self._limiter.held_back(f"{event} {key} {type(error).__name__}")
        if repeated is None:
            return
        raised = fields.pop("exc_info", None)
        if isinstance(raised, BaseException):
            fields["exception"] = public_traceback(raised)
        getattr(self.log, level)(event, error=public_summary(error), repeated=repeated or None, **fields)

    def redis(self, event: str, error: BaseException, **fields: object) -> None:
        """Log that an operation failed because of Redis; the line names the other operations that fail too."""
        operation = _operation(event, fields)
        self._open[operation] = None
        repeated, reason = self._limiter.held_back(_REDIS, self._may_log_outage), error_summary(error)
        if repeated is None:
            if reason != self._logged.get("error") and len(self._reasons) < _ALSO_MAX:
                self._reasons[reason] = None
            return
        others = [other for other in self._open if other != operation]
        also = ", ".join(others[:_ALSO_MAX]) + (", ..." if len(others) > _ALSO_MAX else "")
        self._logged, self._reasons = {"what": operation, "error": reason}, {}
        self.log.warning(event, **fields, error=reason, also=also or None, repeated=repeated or None)

    def resolved(self, event: str, **fields: object) -> None:
        """Note that an operation works; logged when nothing fails any more and the outage was logged."""
        if not self._open:
            return
        self._open.pop(_operation(event, fields), None)
        if self._logged and not self._open:
            self.log.info("works again", what=self._logged["what"], reasons=list(self._reasons) or None)
            self._logged, self._reasons = {}, {}


def outage_turn(shared: SharedState) -> Callable[[], bool]:
    """Return a function that lets one process of the pool in `QUIET_S` log an outage of Redis."""

    def may_log() -> bool:
        now_ns = time.monotonic_ns()
        if now_ns - shared.get(HeaderField.OUTAGE_LOGGED_NS) < QUIET_S * 1e9:
            return False
        shared.set(HeaderField.OUTAGE_LOGGED_NS, now_ns)
        return True

    def may_log_alone() -> bool:
        try:  # all processes notice an outage in the same microsecond
            fcntl.lockf(shared.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no locks on this file system: at worst, two lines
            return may_log()
        try:
            return may_log()
        finally:
            fcntl.lockf(shared.fd, fcntl.LOCK_UN)

    return may_log_alone


def _operation(event: str, fields: dict[str, object]) -> str:
    """Return the event with its fields: `can't read stream=events group=mail`."""
    return " ".join([event, *(f"{name}={value}" for name, value in fields.items() if value is not None)])


def _tidy(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Put time, level and event first, and remove empty fields."""
    first: dict[str, Any] = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return {**first, **{key: value for key, value in event.items() if value is not None}}
