"""`supervisor start`: loads the settings and runs the arbiter."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import Value, command, config_option, load_settings, redis_option
from supervisor.errors import ConfigError, SupervisorError
from supervisor.values import WORKERS

if TYPE_CHECKING:
    from supervisor.arbiter.started_from import StartedFrom
    from supervisor.settings.load import Loaded


@command(
    """\
    supervisor start                  everything from ./config.toml
    supervisor start --workers 8 --redis redis://10.0.0.5:6379/0
    supervisor start --reload         restart whenever a file is saved
    supervisor start --burst          handle all messages, then exit""",
    short_help="Run the pool in the foreground.",
)
@config_option
@click.option("--workers", type=Value(WORKERS), metavar="N", help="Worker processes, instead of pool.workers.")
@redis_option
@click.option("--handlers", multiple=True, metavar="MODULE", help="A handler module; can be repeated.")
@click.option("--bind", metavar="ADDRESS", help="HOST:PORT or unix:/PATH of the HTTP service, instead of api.bind.")
@click.option("--no-api", is_flag=True, help="Start no HTTP service.")
@click.option("--reload", is_flag=True, help="For development: restart the workers when a file changes.")
@click.option("--burst", is_flag=True, help="Handle all messages, then exit; without HTTP service.")
def start(
    config: Path | None,
    workers: int | None,
    redis: str | None,
    handlers: tuple[str, ...],
    bind: str | None,
    no_api: bool,
    **switches: bool,
) -> int:
    """Run the pool in the foreground: arbiter, workers, keeper and HTTP service, and a Redis if none is configured.

    Ctrl-C or SIGTERM drains and exits, a second one exits at once. SIGHUP reads configuration and handlers again.
    """
    burst, reload = switches["burst"], switches["reload"]
    flags = {
        "pool.workers": workers,
        "redis.url": redis,
        "handlers": list(handlers) or None,
        "api.bind": bind,
        # A burst ends by itself; an HTTP service would not.
        "api.enabled": False if no_api or burst else None,
    }
    # In the terminal's background, a warning must not stop the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTIN, signal.SIGTTOU])
    from supervisor.arbiter import started_from
    from supervisor.arbiter.reload import PREFLIGHT_VARIABLE, errors_to_arbiter, held_settings, hold_on_error

    preflight = PREFLIGHT_VARIABLE in os.environ
    before = started_from.inherited()
    with errors_to_arbiter():
        loaded = held_settings()
        if loaded is None:
            try:
                loaded = _checked(before.config_path() if before else config, flags, burst=burst)
            except SupervisorError as error:
                hold_on_error(error, before)
                raise
        from supervisor.arbiter.bootstrap import run

        if reload:
            before = before or _watched(loaded)
        code = run(loaded, burst=burst, started_from=before)
        if preflight:
            from supervisor.cli.api import check_routers

            check_routers(loaded)
        return code


def _checked(config: Path | None, flags: Mapping[str, Any], *, burst: bool) -> Loaded:
    """Load the settings. Raises ConfigError, also for an address that the HTTP service may not use."""
    loaded = load_settings(config, flags)
    if burst and not loaded.settings.pool.first_workers:
        raise ConfigError(f"{loaded.origins['pool.workers']}: pool.workers = 0: must be at least 1 with --burst")
    if loaded.settings.api.enabled:
        from supervisor.http_bind import check_bind

        # Checked before the start too: otherwise the pool would restart the failing service forever.
        check_bind(loaded.settings)
    return loaded


def _watched(loaded: Loaded) -> StartedFrom:
    """Start watching the project's files. Raises SupervisorError."""
    from supervisor.arbiter import source_watch
    from supervisor.arbiter.started_from import StartedFrom

    # A file that is saved twice in a second, with the same length, would be taken for the compiled one.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    try:
        source_watch.start(loaded)
    except OSError as error:
        raise SupervisorError(f"--reload: {error}") from None
    return StartedFrom.of(loaded, reloads=True)
