"""Decides where handlers are imported: once in the arbiter, before the workers are forked, or in each worker.

1. `auto` imports them in the arbiter. When that started threads or an event loop, the process execs itself, and the
   workers import. The import is traced, so a start that is refused names the module without a second start.
2. What is connected at import can't be shared by workers and is an error: `@worker_lifespan` is its place.
3. An arbiter without the code knows the handlers from that process: stream, group, name and options of each.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from supervisor.arbiter import fork
from supervisor.arbiter.fork_hazards import CONNECTION, THREADS
from supervisor.arbiter.import_probe import UNSAFE_VARIABLE, Cause, Probe, import_here, probe
from supervisor.errors import HandlerError
from supervisor.handling.loader import HandlerSpec
from supervisor.settings.load import Loaded
from supervisor.settings.model import PoolSettings
from supervisor.text import counted

_CAUSES_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class LoadedHandlers:
    """The handlers, and where they are imported."""

    specs: list[HandlerSpec]
    #: The workers are forked with the handlers imported; otherwise each imports them itself.
    preloaded: bool = True
    #: Why they are not, if that was not configured: `numpy starts 3 threads when it is imported`.
    reason: str = ""
    #: What importing them in a worker takes.
    import_s: float = 0.0
    memory_mb: int = 0

    @property
    def cost(self) -> str:
        """What it costs that the workers import the handlers themselves."""
        return (
            f"each worker takes {self.import_s:.1f} s to import the handlers and {self.memory_mb} MB of its own for"
            " them; a worker that is replaced imports the code as it is then"
        )

    def boot_limit_s(self, pool: PoolSettings) -> float:
        """Return when a worker must be READY: those that import do it at the same time, on few processors."""
        importing_s = 0.0 if self.preloaded else self.import_s * max(1, pool.workers)
        return pool.boot_limit_s + importing_s

    def log(self, log: Any) -> None:
        """Log why the workers import the handlers, unless that was configured."""
        if self.reason and not self.preloaded:
            log.warning("handlers imported in workers", reason=self.reason, cost=self.cost)


def load(
    loaded: Loaded, own_sockets: Iterable[int] = (), begin_again: Callable[[], NoReturn] | None = None
) -> LoadedHandlers:
    """Import the handlers where `[pool] preload` says. Raises HandlerError.

    `begin_again` execs this command once more when the import was unsafe: threads that were started can't be undone.
    """
    preload, again = loaded.settings.pool.preload, os.environ.pop(UNSAFE_VARIABLE, "")
    _check_safe(own_sockets)
    if preload is False or again:
        decided = examine(loaded)
        if not decided.preloaded:
            return decided
    probed = import_here(loaded)
    try:
        fork.check_safe(own_sockets)
        fork.check_no_event_loop()
    except fork.ForkUnsafeError as error:
        if again or begin_again is None:
            raise HandlerError(str(error)) from None
        _decide(probed, preload)
        begin_again()
    return LoadedHandlers(probed.specs)


def examine(loaded: Loaded) -> LoadedHandlers:
    """Import the handlers in a process of its own, and return what a start would do. Raises HandlerError."""
    return _decide(probe(loaded), loaded.settings.pool.preload)


def _decide(probed: Probe, preload: Any) -> LoadedHandlers:
    """Return where the handlers are imported, given what their import has done. Raises HandlerError."""
    connected = [cause for cause in probed.causes if cause.kind == CONNECTION]
    if preload is not False and connected:
        listed = "; ".join(f"{_by(cause)} has a socket {cause.detail}" for cause in connected[:_CAUSES_SHOWN_MAX])
        raise HandlerError(
            f"a socket is open before the workers are forked: {listed}. All workers would share it: connect in"
            " @worker_lifespan, which runs in each worker; what it yields is context().state in handlers"
        )
    # A loop has several descriptors.
    causes = dict.fromkeys(f"{_by(cause)} {_does(cause)}" for cause in probed.causes)
    reason = "; ".join(list(causes)[:_CAUSES_SHOWN_MAX])
    if preload is True and reason:
        threads = sum(cause.count for cause in probed.causes)
        raise HandlerError(
            f"{1 + threads} threads run before the workers are forked: {reason}. A fork keeps only one of them and the"
            ' locks of all: set [pool] preload = "auto", which imports the handlers in the workers'
            if threads
            else f'{reason}, which no fork can share: set [pool] preload = "auto"'
        )
    preloaded = not reason if preload == "auto" else preload
    return LoadedHandlers(probed.specs, bool(preloaded), reason, probed.import_s, probed.memory_mb)


def _by(cause: Cause) -> str:
    return f"{cause.module} (imported by {cause.importer})" if cause.importer else cause.module


def _does(cause: Cause) -> str:
    if cause.kind == THREADS:
        return f"starts {counted(cause.count, 'thread')} when it is imported ({cause.detail})"
    return f"opens {cause.detail} when it is imported"


def _check_safe(own_sockets: Iterable[int]) -> None:
    """Check what ran before the handlers are imported. Raises HandlerError."""
    try:
        fork.check_safe(own_sockets)
    except fork.ForkUnsafeError as error:
        raise HandlerError(str(error)) from None
