"""`supervisor start`: the steps before the arbiter's loop runs.

Errors in configuration and handlers are found here, before any child is started.
"""

import gc

from supervisor.arbiter import preload, reload
from supervisor.arbiter.arbiter import Arbiter
from supervisor.arbiter.locks import lock_state_dir
from supervisor.arbiter.spawn import EntryPoints, real_entry_points
from supervisor.control import exit_report, last_groups
from supervisor.errors import EXIT_FAILED, EXIT_OK, SupervisorError
from supervisor.handling.router_check import check_routers
from supervisor.log import log_records, logger
from supervisor.settings.load import Loaded
from supervisor.settings.paths import pool_paths
from supervisor.standard_streams import replace_text_streams

#: Why the exit code is not 0 after a drain.
WORK_LEFT = "the drain timed out: unfinished messages stay pending and run at the next start"


def run(loaded: Loaded, *, burst: bool = False, entry_points: EntryPoints | None = None) -> int:
    """Run the pool until it is stopped and return the exit code.

    `entry_points` replace what runs in the children. Raises AlreadyRunningError, HandlerError,
    RedisUnreachableError or ConfigError if the pool can't be started.
    """
    # Before the handlers are imported: what they keep of the streams must not fail or wait either.
    replace_text_streams()
    log_records(loaded.settings, logger(loaded.settings))
    # Memory that the collector does not touch stays shared with the children, which enable it again.
    gc.disable()
    inherited = reload.read_state()
    preflight = reload.preflight_request()
    if preflight is not None:
        reload.check_compatible(preflight, loaded.settings)
        handlers = preload.load(loaded, begin_again=lambda: reload.begin_again(preflight))
        reload.note_preloaded(handlers.preloaded)
        return EXIT_OK
    lock_fd = inherited.lock_fd if inherited else lock_state_dir(pool_paths(loaded.settings))
    if not inherited and loaded.settings.api.enabled:
        check_routers(loaded)
    if inherited:
        handlers = preload.load(loaded, inherited.sockets)
    else:
        handlers = preload.load(loaded, begin_again=reload.begin_again)
    arbiter = Arbiter(loaded, handlers, entry_points or real_entry_points(), lock_fd, inherited, burst=burst)
    last_groups.write(pool_paths(loaded.settings), [(spec.stream, spec.group) for spec in handlers.specs])
    return _run_and_report(arbiter, loaded)


def _run_and_report(arbiter: Arbiter, loaded: Loaded) -> int:
    """Run the arbiter and write the exit report for `supervisor stop`."""
    paths = pool_paths(loaded.settings)
    try:
        code = arbiter.run()
    except SupervisorError as error:
        exit_report.write(paths, error.exit_code, str(error))
        raise
    except Exception as error:
        exit_report.write(paths, EXIT_FAILED, repr(error))
        raise
    exit_report.write(paths, code, "" if code == EXIT_OK else WORK_LEFT)
    return code
