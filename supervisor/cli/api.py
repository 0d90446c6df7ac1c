"""`supervisor api`: runs the HTTP service alone, under uvicorn.

The folder api/ is installed as the package `supervisor_api`; in a checkout that is not installed it is loaded from
the folder under the same name. `api` is never imported: that name belongs to the user's project.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import command, config_option, load_settings, redis_option
from supervisor.errors import EXIT_FAILED, EXIT_OK, SupervisorError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import uvicorn

    from supervisor.settings.load import Loaded

PACKAGE = "supervisor_api"
#: Open event streams are closed after this; uvicorn alone would wait for them forever.
GRACE_S = 2
#: How long the thread that reads a large body may hold the interpreter while the event loop waits for it.
_SWITCH_S = 0.001
#: Requests on open connections are still answered for this long.
LAST_S = 0.1


@command(
    """\
    supervisor api
    supervisor api --bind 127.0.0.1:9000 --redis redis://10.0.0.5:6379/0""",
    short_help="Run the HTTP service alone.",
)
@config_option
@click.option("--bind", metavar="ADDRESS", help="HOST:PORT or unix:/PATH to listen on, instead of api.bind.")
@redis_option
def api(config: Path | None, bind: str | None, redis: str | None) -> int:
    """Run the HTTP service alone: publish, history, health, status. For hosts without workers."""
    loaded = load_settings(config, {"api.bind": bind, "redis.url": redis})
    return serve(loaded)


def serve(loaded: Loaded) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. Raises ConfigError for an address that is not allowed."""
    import uvicorn

    # uvicorn would import this when it starts: by then a project's own websockets.py would be found.
    import uvicorn.protocols.websockets.auto

    from supervisor.http_bind import check_bind, close, inherited_sockets, listen, url_of
    from supervisor.log import log_records, lower_log_level, service_logger
    from supervisor.standard_streams import replace_text_streams

    check_bind(loaded.settings)
    bind = loaded.settings.api.bind
    inherited = inherited_sockets()
    listening, report_ready, process = inherited or ([], None, 0)
    log = service_logger(loaded.settings, "api")
    is_one_of_many = inherited is not None and loaded.settings.api.processes > 1
    # Before the project's modules, as above.
    figures = module_of("http_figures").HttpFigures(str(process + 1) if is_one_of_many else "")
    protocol = module_of("http_protocol").protocol(log, figures)
    app = application().create_app(loaded, figures)
    configuration = uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    replace_text_streams()
    log_records(loaded.settings, log)
    lower_log_level(loaded.settings)
    uvicorn_log = logging.getLogger("uvicorn")
    uvicorn_log.setLevel(logging.DEBUG if loaded.settings.log.level == "debug" else logging.WARNING)
    # uvicorn raises the signal again after its shutdown; the exit code must be 0 then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(EXIT_OK))
    server = _server(configuration, report_ready)
    # Only now: a router that can't be used must leave no file of a unix socket behind.
    listening = listening or listen(bind)
    log.info("listening", url=url_of(bind))
    try:
        server.run(sockets=listening)
    finally:
        if inherited is None:
            close(listening, bind)
    return EXIT_OK if server.started else EXIT_FAILED


def _server(configuration: uvicorn.Config, report_ready: Callable[[], object] | None) -> uvicorn.Server:
    """Make a uvicorn server that reports when it is ready and shuts down gently."""
    import asyncio

    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            _prepare_interpreter()
            if self.started and report_ready is not None:
                report_ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # uvicorn alone would close connections whose first request is still on its way.
            for server in self.servers:
                server.close()
            await asyncio.sleep(LAST_S)
            await super().shutdown(sockets)

    return Server(configuration)


def _prepare_interpreter() -> None:
    """Keep the pauses of the event loop short: those of the garbage collector, and those for another thread."""
    import gc

    # A full collection looks at everything that was imported, for about 60 ms, and large batches cause one a second.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_S)


def check_routers(loaded: Loaded) -> None:
    """Import the routers that a pool's HTTP service mounts, if any. Raises HandlerError."""
    if loaded.settings.api.enabled and loaded.settings.api.routers:
        application().create_app(loaded)


def application() -> Any:
    """Return the module with `create_app(loaded)`. Raises SupervisorError when it is not installed."""
    return module_of("app")


def module_of(name: str) -> Any:
    """Return a module of the HTTP service. Raises SupervisorError when it is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        folder = Path(__file__).parents[2] / "api"
        spec = importlib.util.spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None or not folder.is_dir():
            raise SupervisorError(f"the HTTP service is not installed: there is no package {PACKAGE} and no {folder}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{PACKAGE}.{name}")
