"""`supervisor start --reload`: a process that watches the project's files and asks for a restart when they change.

It is forked before the arbiter does anything, dies with it, and has nothing but the control socket. A change that comes
while the code is being checked begins the check again: however many files are saved at once, there is one restart.
"""

import os
import signal
import time

from supervisor.arbiter.fork import Descriptors, fork_child
from supervisor.control.client import request
from supervisor.errors import EXIT_OK, SupervisorError
from supervisor.settings.load import Loaded
from supervisor.settings.paths import PoolPaths, pool_paths

#: Changes count as one until nothing has changed for this long, but at most for `DEBOUNCE_MS`.
QUIET_MS = 100
DEBOUNCE_MS = 600
RETRY_S = 0.1
#: How long to ask a pool that is starting, or that does not answer.
PATIENCE_S = 60.0


def start(loaded: Loaded) -> int:
    """Fork the process and return its pid. Raises OSError and ForkUnsafeError."""
    stacks = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        return fork_child(lambda: _watch(loaded), name="reload", fds=Descriptors(stacks=stacks, close=[]))
    finally:
        os.close(stacks)


def _watch(loaded: Loaded) -> int:
    from watchfiles import PythonFilter, watch

    signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_OK))
    paths = pool_paths(loaded.settings)
    files = PythonFilter(ignore_paths=[str(paths.state_dir)], extra_extensions=(".toml", ".env"))
    for _ in watch(loaded.root, watch_filter=files, step=QUIET_MS, debounce=DEBOUNCE_MS, raise_interrupt=False):
        _ask_for_restart(paths)
    return EXIT_OK


def _ask_for_restart(paths: PoolPaths) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        try:
            request(paths, "restart", afresh=True)
        except SupervisorError:  # it is starting, replacing its own image, or draining
            time.sleep(RETRY_S)
        else:
            return
