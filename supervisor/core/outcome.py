"""How a delivery ends: done, retry later or dead letter. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from supervisor.core.backoff import backoff_s
from supervisor.core.options import Options
from supervisor.messages import Reject, Retry
from supervisor.text import error_summary, error_text, shortened

#: The reason of a dead letter whose message ended the processes that ran it.
CRASHED = "crashed the worker"


@dataclass(frozen=True, slots=True)
class Crash:
    """How the process ended that ran a message, as its arbiter saw it."""

    #: One word: exit, signal, or why the arbiter has killed it (hung, deadline, boot); failed: a consumer of an app.
    reason: str
    #: `SIGSEGV`; empty when no signal ended it.
    signal: str
    #: None when a signal ended it, or when it was part of an app, which goes on.
    exit_code: int | None
    #: Where its threads were, if it could still tell; empty otherwise.
    stack: str

    @property
    def text(self) -> str:
        """One line that describes the crash, for dead letters."""
        how = f"left with exit code {self.exit_code}" if self.exit_code is not None else "failed"
        if self.signal:
            how = f"was ended by {self.signal}"
        why = "" if self.reason in ("exit", "signal", "failed") else f" ({self.reason})"
        return f"its worker {how}{why}"


@dataclass(frozen=True, slots=True)
class Later:
    """The message stays pending and is run again."""

    delay_s: float
    #: How many attempts have failed, with this one.
    attempts: int


@dataclass(frozen=True, slots=True)
class Dead:
    """The message is given up."""

    reason: str
    attempts: int


def outcome_of(error: BaseException, failed_before: int, options: Options, random: Callable[[], float]) -> Later | Dead:
    """Return the outcome of a handler's exception, given how often the message failed before."""
    attempts = failed_before + 1
    if isinstance(error, Reject):
        return Dead(shortened(error_text(error)), attempts)
    if attempts >= options.max_deliveries:
        often = "once," if attempts == 1 else f"{attempts} times, the last time"
        return Dead(f"failed {often} with {error_summary(error)}", attempts)
    if isinstance(error, Retry) and error.after_s is not None:
        return Later(max(0.0, error.after_s), attempts)
    return Later(backoff_s(attempts, options.retry_base_s, options.retry_max_s, random), attempts)
