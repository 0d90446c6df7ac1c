"""All errors that a user may see, under one root, each with its exit code.

An error is raised where it is found and turned into text in one place: `supervisor.cli` for the terminal,
`api/problems.py` for HTTP. Scripts rely on the exit codes.
"""

#: Success.
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
#: `status` only: the pool is degraded.
EXIT_DEGRADED = 6
#: Stopped with work left.
EXIT_DRAIN = 7
#: No supervisor runs here.
EXIT_DOWN = 8

# Exit codes of a child, for the arbiter only (from sysexits.h where it has one).
#: A worker that exits as planned (drained, recycled).
WORKER_PLANNED = 80
#: A worker whose configuration or handlers are unusable: EX_CONFIG.
WORKER_CONFIG = 78
#: A child whose dependency is down: EX_TEMPFAIL.
WORKER_TEMPFAIL = 75


class SupervisorError(Exception):
    """The root of all errors of this package; `exit_code` is the exit code of the command line."""

    exit_code = EXIT_FAILED


class UsageError(SupervisorError):
    """A wrong argument of a command or a call."""

    exit_code = EXIT_USAGE


class ConfigError(SupervisorError):
    """A wrong value in config.toml, the environment or a flag."""

    exit_code = EXIT_USAGE


class RedisUnreachableError(SupervisorError):
    """Redis does not answer, or can't serve."""

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


class HandlerTimeoutError(SupervisorError):
    """A handler did not end within its `timeout_s`."""


class AnswerLostError(NotRunningError):
    """A supervisor was sent a command and did not answer: it may have carried it out, or do so later."""


class OtherUserError(SupervisorError):
    """The pool belongs to another user; whether it runs can't be seen."""


class HandlerProcessError(SupervisorError):
    """The process of a handler with `run_in = "process"` ended while it ran."""


class EncodeError(UsageError):
    """A message that can't be stored as fields; `field` names the wrong field, if it is one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class PublishError(SupervisorError):
    """A message that was not published, or may not have been.

    `code` is Redis's own code where there is one (OOM, READONLY, WRONGTYPE, LOADING ...), UNREACHABLE when Redis did
    not answer, FULL when too many messages wait for Redis already.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class PublishRefusedError(PublishError):
    """The message was not stored: it can be published again."""


class PublishUnknownError(PublishError):
    """The message was sent and no answer came: it may be stored. With a key it can be published again safely."""


class NotConfirmedError(PublishError):
    """The messages are stored, but replicas or the append-only file did not confirm it in time; `ids` are theirs."""

    def __init__(self, message: str, ids: list[str]) -> None:
        super().__init__(message, "NOTCONFIRMED")
        self.ids = ids


class IdempotencyError(PublishError):
    """The key was used before for another message."""
