"""The arbiter: assembles loop, children, workers, services and control socket, and connects their events.

It forks, waits, kills and counts. It has no thread and no Redis connection: all that may block or fail is a child.
"""

import gc
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from supervisor.arbiter import embedded_redis, fork, reload, snapshot
from supervisor.arbiter.autoscaler import Autoscaler
from supervisor.arbiter.check_process import CheckProcess, error_of
from supervisor.arbiter.child_processes import ChildProcesses
from supervisor.arbiter.commands import Commands
from supervisor.arbiter.http_listener import LEFTOVER_S, HttpListener
from supervisor.arbiter.lifespan_waits import LifespanWaits
from supervisor.arbiter.locks import lease_token, name_taken
from supervisor.arbiter.loop import Loop
from supervisor.arbiter.outage_watch import OutageWatch
from supervisor.arbiter.outputs import Outputs
from supervisor.arbiter.pool_status import PoolStatus
from supervisor.arbiter.preload import LoadedHandlers
from supervisor.arbiter.recycler import Recycler
from supervisor.arbiter.reload import ReloadState
from supervisor.arbiter.rolling_restart import RollingRestart
from supervisor.arbiter.services import BOOT_S, KEEPER_SILENT_S, NAMES, ServiceGroup
from supervisor.arbiter.shutdown import Shutdown
from supervisor.arbiter.spawn import API, KEEPER, REDIS, EntryPoints, Spawner
from supervisor.arbiter.stack_dumps import StackDumps
from supervisor.arbiter.startup_report import StartupReport
from supervisor.arbiter.state_dir import PoolLocation
from supervisor.arbiter.systemd import SystemdNotifier
from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.control.server import ControlServer, listen
from supervisor.core.slot import Limits, State
from supervisor.errors import EXIT_OK, EXIT_REDIS, HandlerError, SupervisorError
from supervisor.http_bind import pool_bind
from supervisor.log import Limiter, is_human, logger
from supervisor.settings.load import Loaded
from supervisor.settings.paths import redis_url
from supervisor.settings.unused_overrides import unused_overrides
from supervisor.shared_state import HeaderField, SharedState

TICK_S = 1.0
#: How long to wait at the very end for the processes that workers left behind.
REAP_S = 0.2
#: Added to the time that the boot check itself waits for Redis: it may also wait for the end of a lease.
BOOT_CHECK_SLACK_S = 25.0


class Arbiter:
    """The arbiter of one pool."""

    def __init__(
        self,
        loaded: Loaded,
        handlers: LoadedHandlers,
        entry_points: EntryPoints,
        location: PoolLocation,
        inherited: ReloadState | None,
        *,
        burst: bool,
    ) -> None:
        """Opens its descriptors and starts nothing. Raises ConfigError if a socket can't be opened."""
        self._began_s = time.monotonic()
        self._loaded, self._settings = loaded, loaded.settings
        self._handlers, self._specs = handlers, handlers.specs
        self._location, self._paths = location, location.state_dir.paths
        self._log = logger(self._settings)
        self._limiter = Limiter()
        self._inherited, self._burst = inherited, burst
        token = lease_token(self._paths)
        self._http = HttpListener(pool_bind(self._settings), inherited.http if inherited else None)
        if self._http.bind and not inherited:
            self._http.open(LEFTOVER_S)
        self._shared = SharedState(inherited.shared_fd if inherited else None)
        self._loop = Loop(self._internal_error)
        self._children = ChildProcesses(self._loop)
        self._stack_dumps = StackDumps(inherited.stack_fds if inherited else None)
        human = is_human(self._settings)
        self._outputs = Outputs(self._loop, human=human, inherited=inherited.outputs if inherited else ())
        self._systemd = SystemdNotifier()
        listener = socket.socket(fileno=inherited.control_fd) if inherited else listen(self._paths)
        self._control = ControlServer(listener, self._paths, self._loop, self._handle)
        self._spawner = Spawner(
            loaded=loaded,
            specs=handlers.specs,
            preloaded=handlers.preloaded,
            state_dir=location.state_dir,
            entry_points=entry_points,
            shared=self._shared,
            http=self._http,
            stack_dumps=self._stack_dumps,
            outputs=self._outputs,
            lease_token=token,
            burst=burst,
            control_fds=self._control.fds,
            private_fds=lambda: [*self._loop.fds(), *self._children.fds(), location.lock_fd],
        )
        self._assemble()
        self._failure: SupervisorError | None = None
        self._boot_check: CheckProcess | None = None

    def _assemble(self) -> None:
        pool, log = self._settings.pool, self._log
        limits = Limits(boot_s=self._handlers.boot_limit_s(pool), beat_s=pool.beat_limit_s, drain_s=pool.drain_s)
        service_limits = Limits(boot_s=BOOT_S, beat_s=KEEPER_SILENT_S, drain_s=pool.drain_s)
        common = (self._loop, self._children, self._stack_dumps)
        self._services = ServiceGroup(self._shared, *common, service_limits, log, self._changed)
        self._workers = WorkerGroup(
            self._shared, self._spawner.worker, *common, limits, log, self._changed, burst=self._burst
        )
        self._shutdown = Shutdown(self._workers, self._services, self._loop, log)
        self._restarts = RollingRestart(
            workers=self._workers,
            services=self._services,
            shutdown=self._shutdown,
            loop=self._loop,
            log=log,
            drain_s=pool.drain_s,
            start_preflight=self._start_preflight,
            exec_successor=self._exec_successor,
        )
        groups = (self._workers, self._services)
        self._status = PoolStatus(*groups, self._shutdown, self._restarts, self._specs, self._burst, self._loaded)
        self._commands = Commands(
            workers=self._workers,
            services=self._services,
            shutdown=self._shutdown,
            restarts=self._restarts,
            log=log,
            status=self._answer_status,
            figures=self._status.figures,
            stop=self._stop,
        )
        self._recycler = Recycler(self._workers, self._restarts, pool, log)
        self._autoscaler = Autoscaler(self._workers, self._restarts, pool, log, enabled=not self._burst)
        self._outage_watch = OutageWatch(self._workers, log)
        self._lifespan_waits = LifespanWaits(self._workers, self._specs, log, limits)

    def _handle(self, cmd: str, args: dict[str, Any]) -> dict[str, Any]:
        return self._commands.handle(cmd, args)

    def run(self) -> int:
        """Run until the last child is gone and return the exit code. Raises what kept the pool from starting."""
        for line in unused_overrides(self._loaded, [(spec.stream, spec.group) for spec in self._specs]):
            self._log.warning("unused override", where=line)
        self._handlers.log(self._log)
        fork.become_subreaper()
        self._handle_signals()
        self._tick()
        if self._inherited:
            self._resume(self._inherited)
        else:
            self._shared.set(HeaderField.START_NS, time.monotonic_ns())
            self._boot()
        self._loop.run()
        self._outputs.finish()
        self._control.close()
        self._loop.close()
        self._children.reap_rest(REAP_S)
        if self._failure is not None:
            raise self._failure
        self._shutdown.log_end()
        return self._shutdown.exit_code

    # Start

    def _boot(self) -> None:
        redis = self._settings.redis
        if not redis.url:
            try:
                embedded_redis.find_binary()
                embedded_redis.make_folder(self._paths)
            except SupervisorError as error:
                self._fail(error)
                return
            self._services.add(NAMES.index(REDIS), self._spawner)
            self._services.check()
        limit_s = redis.connect_timeout_s + BOOT_CHECK_SLACK_S
        try:
            self._boot_check = CheckProcess(
                self._loop, self._children, self._spawner.boot_check, limit_s, self._boot_check_done
            )
        except (OSError, SupervisorError) as error:
            self._fail(SupervisorError(f"the boot check can't be started: {error}"))

    def _boot_check_done(self, code: int, report: dict[str, Any]) -> None:
        self._boot_check = None
        if self._shutdown.begun:
            self._changed()
        elif code != EXIT_OK:
            line = embedded_redis.last_log_line(self._paths) if self._services.get(REDIS) else ""
            hint = f"; the last line of {embedded_redis.log_path(self._paths)}: {line}" if line else ""
            self._fail(error_of(code, f"{report.get('error')}{hint if code == EXIT_REDIS else ''}"))
        else:
            self._status.redis = report.get("redis", {})
            self._start_children()

    def _start_children(self) -> None:
        gc.collect()
        gc.freeze()
        pool = self._settings.pool
        if self._burst:
            self._show_report(0, pool.first_workers)
        self._workers.scale(pool.first_workers)
        self._services.add(NAMES.index(KEEPER), self._spawner)
        self._services.apply_settings(self._settings, self._spawner)
        self._services.check()
        self._loop.call_at(time.monotonic() + pool.boot_limit_s, self._report_started)

    def _report_started(self) -> None:
        """Show the startup report; repeated until all workers have been READY."""
        workers = self._workers
        if self._status.started or self._shutdown.begun:
            return
        ready = sum(slot.state is State.READY for slot in workers.slots.values())
        self._status.started = ready == workers.size
        if self._status.started:
            self._systemd.ready()
        if not self._burst:
            self._show_report(ready, workers.size)

    def _show_report(self, ready: int, workers: int) -> None:
        StartupReport(
            loaded=self._loaded,
            specs=self._specs,
            redis=self._status.redis,
            embedded=self._services.get(REDIS) is not None,
            ready=ready,
            workers=workers,
            boot_ms=round((time.monotonic() - self._began_s) * 1000),
            api=len(self._services.all_of(API)),
            burst=self._burst,
        ).show(self._log)

    def _start_preflight(self, done: Callable[[int, dict[str, Any]], None]) -> CheckProcess:
        def start(out_fd: int) -> int:
            body = partial(reload.exec_preflight, self._settings, self._location, out_fd)
            try:
                return self._spawner.fork("preflight", body, uses_state=True)
            finally:  # nobody reads its stacks
                self._stack_dumps.drop("preflight")

        return CheckProcess(self._loop, self._children, start, reload.PREFLIGHT_LIMIT_S, done)

    def _exec_successor(self, report: dict[str, Any]) -> NoReturn:
        state = reload.ReloadState(
            shared_fd=self._shared.fd,
            lock_fd=self._location.lock_fd,
            control_fd=self._control.listener.fileno(),
            workers=[slot for slot in self._workers.slots.values() if slot.wanted or slot.living],
            services=list(self._services.slots.values()),
            configured_workers=self._settings.pool.workers,
            redis=self._status.redis,
            stack_fds=self._stack_dumps.by_name,
            outputs=self._outputs.state(),
            http=self._http.state(),
            signals=[],
            state_dir_fd=self._location.state_dir.fd,
            snapshot=snapshot.pack(self._loaded, self._specs),
            held_since_s=self._restarts.held_since_s,
        )
        reload.exec_successor(state, self._location, self._loop, self._systemd, preloaded=report.get("preloaded", True))

    def _resume(self, inherited: ReloadState) -> None:
        """Continue with the children of the earlier image and replace them one by one."""
        self._status.redis, self._status.started = inherited.redis, True
        self._systemd.ready()
        gc.collect()
        gc.freeze()
        for slot in inherited.services:
            self._services.add(slot.number, self._spawner, slot)
        for slot in inherited.workers:
            self._workers.adopt(slot)
        self._workers.was_ready = True
        if inherited.load_error:
            self._services.check()
            self._restarts.hold(inherited.load_error, inherited.held_since_s)
            return
        pool = self._settings.pool
        self._services.apply_settings(self._settings, self._spawner)
        self._services.check()
        changed = pool.workers != inherited.configured_workers
        self._workers.scale(pool.workers if changed else self._workers.size)
        self._restarts.roll(at_once=self._location.started_from.reloads)

    # Events

    def _changed(self) -> None:
        """React to a change of any child's state."""
        if self._shutdown.begun:
            self._advance_shutdown()
            return
        if self._boot_check is not None:
            return
        workers = self._workers
        if workers.all_ready:
            self._report_started()
        self._restarts.step()
        if not workers.was_ready and any(slot.state is State.FAILED for slot in workers.slots.values()):
            self._fail(HandlerError("a worker can't start with this configuration; its error is logged above"))
        elif not self._inherited and self._services.failed_first_start(API):
            self._fail(HandlerError("the HTTP service can't start; its error is logged above"), drain=True)
        elif self._burst and workers.slots and workers.size == 0 and not workers.living:
            self._stop("no work left")

    def _advance_shutdown(self) -> None:
        self._restarts.cancel()
        if self._boot_check is not None:
            self._boot_check.kill()
        elif self._shutdown.advance():
            self._loop.stop()

    def _fail(self, error: SupervisorError, *, drain: bool = False) -> None:
        """Kill or drain everything, then have `run` raise this error."""
        self._failure = self._failure or error
        if drain:
            self._stop(str(error))
            return
        self._http.close()
        self._shutdown.begin(self._settings.pool.drain_s)
        self._shutdown.kill()
        self._changed()

    def _answer_status(self) -> dict[str, Any]:
        """Return the document with what the commands need besides: all groups, and the URL with its password."""
        groups = [[spec.stream, spec.group] for spec in self._specs]
        return {**self._status.document(), "consumers": groups, "redis_url": redis_url(self._settings)}

    def _internal_error(self, error: Exception) -> None:
        """Log a bug of the arbiter; the children live on, but a pool that has never worked is given up."""
        repeated = self._limiter.held_back(repr(error))
        if repeated is not None:
            self._log.error("internal error", repeated=repeated or None, exc_info=error)
        if not self._workers.was_ready and not self._shutdown.begun:
            self._fail(SupervisorError(f"internal error while starting: {error!r}"))

    def _stop(self, reason: str, drain_s: float | None = None) -> None:
        """Drain the pool within `drain_s` (default: as configured) and exit."""
        self._systemd.stopping()
        self._http.close()
        self._shutdown.drain(reason, self._settings.pool.drain_s if drain_s is None else drain_s)
        self._changed()

    def _quick_stop(self, reason: str) -> None:
        self._log.info("quick stop", reason=reason)
        self._shutdown.kill()
        self._changed()

    # Signals and time

    def _handle_signals(self) -> None:
        on_signal = self._loop.on_signal
        #: Where a terminal was at the start: stdin and stderr.
        terminals = [fd for fd in (0, 2) if os.isatty(fd)]
        for number in (signal.SIGTERM, signal.SIGINT):
            on_signal(number, partial(self._stop_signal, number.name))
        on_signal(signal.SIGQUIT, partial(self._quick_stop, "SIGQUIT"))
        on_signal(signal.SIGHUP, partial(self._hangup, terminals))
        self._loop.on_sent_signal(signal.SIGTTIN, lambda: self._commands.scale_by(1))
        self._loop.on_sent_signal(signal.SIGTTOU, lambda: self._commands.scale_by(-1))
        on_signal(signal.SIGUSR1, lambda: self._log.info("status", **self._status.document()))
        if self._inherited:  # the earlier image blocked all signals before the exec
            self._loop.unblock_signals()
            for missed in self._inherited.signals:
                signal.raise_signal(missed)

    def _stop_signal(self, name: str) -> None:
        (self._quick_stop if self._shutdown.begun else self._stop)(name)

    def _hangup(self, terminals: list[int]) -> None:
        """Handle SIGHUP: reload, unless the terminal was closed; the kernel closes it before it sends the signal."""
        if all(os.isatty(fd) for fd in terminals):
            self._commands.restart_by_signal()
        elif not self._shutdown.begun:
            self._stop("the terminal was closed")

    def _tick(self) -> None:
        self._loop.call_at(time.monotonic() + min(TICK_S, self._systemd.watchdog_s or TICK_S), self._tick)
        self._location.restore_state_dir(self._spawner.lease_token, self._log, self._limiter)
        self._control.tidy()
        if self._systemd.watchdog_s is not None:
            self._systemd.alive()
        self._systemd.status(self._status.line())
        self._lifespan_waits.check()
        self._outage_watch.check()
        if self._shutdown.begun:
            return
        if self._status.started and not self._restarts.load_error:
            self._recycler.check()
            self._autoscaler.check()
        if self._shared.get(HeaderField.NAME_TAKEN):
            self._fail(name_taken(self._settings), drain=True)
