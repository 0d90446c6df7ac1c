"""Every error that a user may see, under one root, each with its exit code.

An error is raised where it is known and turned into text in one place: `supervisor.cli` for the
terminal, `api/problems.py` for HTTP. The exit codes are part of the contract with scripts.
"""

from __future__ import annotations

#: Everything went as asked.
EXIT_OK = 0
#: Failed while running.
EXIT_FAILED = 1
#: The command line or the configuration is wrong.
EXIT_USAGE = 2
#: Redis could not be reached at boot.
EXIT_REDIS = 3
#: The handlers fail to import or are declared wrongly.
EXIT_HANDLERS = 4
#: Another supervisor holds the same state directory or host name.
EXIT_RUNNING = 5
#: `status` only: the pool runs, but not as it should.
EXIT_DEGRADED = 6
#: The drain deadline passed with work left.
EXIT_DRAIN = 7
#: No supervisor runs here.
EXIT_DOWN = 8

# Exit codes of a worker, read by the arbiter alone (sysexits.h where it has a word for it).
#: A worker that leaves as planned (drained, recycled).
WORKER_PLANNED = 80
#: A worker whose configuration or handlers are unusable: EX_CONFIG.
WORKER_CONFIG = 78
#: A child that lacks something it depends on: EX_TEMPFAIL.
WORKER_TEMPFAIL = 75


class SupervisorError(Exception):
    """The root of all errors of this package; `exit_code` is what the command line exits with."""

    exit_code = EXIT_FAILED


class UsageError(SupervisorError):
    """A wrong argument of a command or a call."""

    exit_code = EXIT_USAGE


class ConfigError(SupervisorError):
    """A wrong value in config.toml, the environment or a flag."""

    exit_code = EXIT_USAGE


class RedisUnreachableError(SupervisorError):
    """Redis does not answer, or answers that it can't serve."""

    exit_code = EXIT_REDIS


class HandlerError(SupervisorError):
    """A handler module that fails to import, or a handler that is declared wrongly."""

    exit_code = EXIT_HANDLERS


class AlreadyRunningError(SupervisorError):
    """Another supervisor owns the state directory or the host's name in Redis."""

    exit_code = EXIT_RUNNING


class NotRunningError(SupervisorError):
    """No supervisor answers on the control socket."""

    exit_code = EXIT_DOWN


class EncodeError(UsageError):
    """A message that can't be stored as fields; `field` is the name of the one at fault, if it is one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class PublishError(SupervisorError):
    """A message that was not, or perhaps not, published.

    `code` is Redis's own word where it has one (OOM, READONLY, WRONGTYPE, LOADING ...), UNREACHABLE where
    it could not be asked, FULL where too many messages wait for it already.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class PublishRefusedError(PublishError):
    """Surely not stored: it may be published again."""


class PublishUnknownError(PublishError):
    """Sent, but no answer came: stored or not. Only a publish with a key may be repeated without a duplicate."""


class IdempotencyError(PublishError):
    """The key was used before, for another payload."""
