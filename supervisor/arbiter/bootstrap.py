"""`supervisor start`: what happens before the arbiter's loop, in its order.

Everything that can be wrong with configuration and handlers is found here, before anything is started.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from supervisor.arbiter import fork, reload
from supervisor.arbiter.arbiter import Arbiter
from supervisor.arbiter.entries import real_entries
from supervisor.arbiter.locks import lock_state_dir
from supervisor.control import exit_report
from supervisor.errors import EXIT_FAILED, EXIT_OK, HandlerError, SupervisorError
from supervisor.handling.load import load_handlers
from supervisor.settings.paths import pool_paths

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supervisor.arbiter.entries import Entries
    from supervisor.settings.load import Loaded

#: Why the exit code is not 0 after a drain.
WORK_LEFT = "the drain's time was over: work was left, which stays pending and runs again"


def run(loaded: Loaded, *, burst: bool = False, entries: Entries | None = None) -> int:
    """Run the pool until it is told to stop; the exit code.

    `entries` stand in for what runs in the children. Raises AlreadyRunningError, HandlerError,
    RedisUnreachableError, ConfigError when the pool can't be started.
    """
    # What the collector does not touch stays shared with the children; they turn it on again.
    gc.disable()
    inherited = reload.read_state()
    wanted = reload.preflight_request()
    if wanted is not None:
        reload.check_compatible(wanted, loaded.settings)
        load_handlers(loaded.settings, loaded.root)
        _check_forkable(())
        return EXIT_OK
    lock_fd = inherited.lock_fd if inherited else lock_state_dir(pool_paths(loaded.settings))
    specs = load_handlers(loaded.settings, loaded.root)
    entries = entries or real_entries()
    _check_forkable(inherited.sockets if inherited else ())
    return _run(Arbiter(loaded, specs, entries, lock_fd, inherited, burst=burst))


def _check_forkable(own_sockets: Iterable[int]) -> None:
    """What handler modules did while they were imported. Raises HandlerError."""
    try:
        fork.check_safe(own_sockets)
    except fork.ForkUnsafeError as error:
        raise HandlerError(str(error)) from None


def _run(arbiter: Arbiter) -> int:
    """To the end, which is told to whoever waits for it."""
    try:
        arbiter.announcer.warn()
        code = arbiter.run()
    except SupervisorError as error:
        exit_report.write(arbiter.paths, error.exit_code, str(error))
        raise
    except Exception as error:
        exit_report.write(arbiter.paths, EXIT_FAILED, repr(error))
        raise
    exit_report.write(arbiter.paths, code, "" if code == EXIT_OK else WORK_LEFT)
    return code
