"""What a worker may lack (threads, descriptors, memory, processes), and how much less it runs meanwhile. Pure."""

import errno
from dataclasses import dataclass
from enum import IntEnum


class Lack(IntEnum):
    """What is lacking, as shared memory holds it."""

    NONE = 0
    THREADS = 1
    DESCRIPTORS = 2
    MEMORY = 3
    PROCESSES = 4


#: The file name of an OSError for a process that could not be started.
NO_PROCESS = "a process for a handler"
#: How to get more.
REMEDIES = {
    Lack.THREADS: "raise the limit of processes (ulimit -u, pids.max), or set [consumer] threads lower",
    Lack.DESCRIPTORS: "raise the limit of open files (ulimit -n), or look for handlers that leave files open",
    Lack.MEMORY: "give the pool more memory, or set concurrency lower",
    Lack.PROCESSES: "raise the limit of processes (ulimit -u, pids.max)",
}
_ERRNOS = {
    errno.EMFILE: Lack.DESCRIPTORS,
    errno.ENFILE: Lack.DESCRIPTORS,
    errno.ENOMEM: Lack.MEMORY,
}
_CAUSES_MAX = 8
#: A lack is over after this time without another one.
CALM_S = 5.0
#: One message may meet this many lacks before they count as its own failures: it may need more than there is.
PER_MESSAGE_MAX = 20
_LEVELS_MAX = 6


def lack_of(error: BaseException) -> Lack:
    """Return what the process lacked when `error` was raised; NONE for any other error."""
    at: BaseException | None = error
    for _ in range(_CAUSES_MAX):
        if at is None:
            break
        if isinstance(at, MemoryError):
            return Lack.MEMORY
        if isinstance(at, RuntimeError) and "can't start new thread" in str(at):
            return Lack.THREADS
        if isinstance(at, OSError) and at.errno in _ERRNOS:
            return _ERRNOS[at.errno]
        if isinstance(at, OSError) and at.errno == errno.EAGAIN and _came_from_fork(at):
            return Lack.PROCESSES
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return Lack.NONE


def _came_from_fork(error: OSError) -> bool:
    """Whether a process could not be started; a socket that is not ready has the same number."""
    trace = error.__traceback__
    if error.filename == NO_PROCESS or trace is None:
        return bool(error.filename == NO_PROCESS)
    while trace.tb_next is not None:
        trace = trace.tb_next
    return bool({"fork", "_fork_exec", "fork_exec"} & set(trace.tb_frame.f_code.co_names))


@dataclass(slots=True)
class LackState:
    """The lacks of one worker, lately."""

    kind: Lack = Lack.NONE
    #: Each level halves how many messages run at a time.
    level: int = 0
    _last_s: float = 0.0
    _raised_s: float = 0.0

    def note(self, kind: Lack, now_s: float) -> bool:
        """Note a lack; True if it is a new one."""
        new = kind is not self.kind
        self.kind, self._last_s = kind, now_s
        if new or now_s - self._raised_s >= 1:
            self.level, self._raised_s = min(_LEVELS_MAX, self.level + 1), now_s
        return new

    def look(self, now_s: float) -> bool:
        """Run more again after a calm; True when the lack has just ended."""
        if self.kind is Lack.NONE or now_s - self._last_s < CALM_S:
            return False
        self.kind, self.level = Lack.NONE, 0
        return True

    def reduced(self, limit: int) -> int:
        """Return how many to run instead of `limit`."""
        return max(1, limit >> self.level)
