"""`supervisor start`: the steps before the arbiter's loop runs.

Errors in configuration and handlers are found here, before any child is started.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from supervisor.arbiter import preload, reload, snapshot
from supervisor.arbiter.locks import lock_state_dir
from supervisor.arbiter.preload import LoadedHandlers
from supervisor.arbiter.reload import ReloadState
from supervisor.arbiter.started_from import StartedFrom
from supervisor.arbiter.started_from import inherited as inherited_start
from supervisor.arbiter.state_dir import PoolLocation, StateDir
from supervisor.control import exit_report, last_groups
from supervisor.errors import EXIT_FAILED, EXIT_OK, SupervisorError
from supervisor.handling.router_check import check_routers
from supervisor.log import log_records, logger
from supervisor.settings.load import Loaded
from supervisor.settings.paths import PoolPaths
from supervisor.standard_streams import replace_text_streams

if TYPE_CHECKING:
    from supervisor.arbiter.arbiter import Arbiter
    from supervisor.arbiter.spawn import EntryPoints


def run(
    loaded: Loaded,
    *,
    burst: bool = False,
    entry_points: EntryPoints | None = None,
    started_from: StartedFrom | None = None,
) -> int:
    """Run the pool until it is stopped and return the exit code.

    `entry_points` replace what runs in the children; `started_from` is where an earlier image of this process was
    started from. Raises AlreadyRunningError, HandlerError, RedisUnreachableError or ConfigError if the pool can't be
    started.
    """
    # Before the handlers are imported: what they keep of the streams must not fail or wait either.
    replace_text_streams()
    log_records(loaded.settings, logger(loaded.settings))
    # Memory that the collector does not touch stays shared with the children, which enable it again.
    gc.disable()
    inherited = reload.read_state()
    preflight = reload.preflight_request()
    started_from = started_from or inherited_start() or StartedFrom.of(loaded)
    if preflight is not None:
        reload.check_compatible(preflight, loaded.settings)
        handlers = preload.load(loaded, begin_again=lambda: reload.begin_again(started_from, preflight))
        reload.note_preloaded(handlers.preloaded)
        return EXIT_OK
    if inherited:
        loaded, handlers = _load_again(loaded, inherited, started_from)
        state_dir = StateDir(loaded.settings.state_dir, inherited.state_dir_fd, project=loaded.root)
        location = PoolLocation(state_dir, inherited.lock_fd, started_from)
    else:
        state_dir = StateDir(loaded.settings.state_dir, project=loaded.root)
        location = PoolLocation(state_dir, lock_state_dir(state_dir.paths), started_from)
        if loaded.settings.api.enabled:
            check_routers(loaded)
        handlers = preload.load(loaded, begin_again=lambda: reload.begin_again(started_from))
    # Only here: a preflight and a start that is refused need none of it.
    from supervisor.arbiter.arbiter import Arbiter
    from supervisor.arbiter.spawn import real_entry_points

    arbiter = Arbiter(loaded, handlers, entry_points or real_entry_points(), location, inherited, burst=burst)
    last_groups.write(state_dir.paths, [(spec.stream, spec.group) for spec in handlers.specs])
    return _run_and_report(arbiter, state_dir.paths)


def _load_again(loaded: Loaded, inherited: ReloadState, started_from: StartedFrom) -> tuple[Loaded, LoadedHandlers]:
    """Import the handlers after a reload, or else keep the earlier ones without their code.

    The preflight could import them, but files may have changed since.
    """
    if inherited.load_error:
        loaded, specs = snapshot.unpack(inherited.snapshot)
        return loaded, LoadedHandlers(specs, preloaded=False)
    try:
        return loaded, preload.load(loaded, inherited.sockets)
    except Exception as error:
        reload.exec_held(inherited, error, started_from)


def _run_and_report(arbiter: Arbiter, paths: PoolPaths) -> int:
    """Run the arbiter and write the exit report for `supervisor stop`."""
    exit_report.reserve(paths)
    try:
        code = arbiter.run()
    except SupervisorError as error:
        exit_report.write(paths, error.exit_code, str(error))
        raise
    except Exception as error:
        exit_report.write(paths, EXIT_FAILED, repr(error))
        raise
    exit_report.write(paths, code, "" if code == EXIT_OK else exit_report.WORK_LEFT)
    return code
