"""The arbiter: puts loop, children, pool, services and control socket together, and says what follows from what.

It forks, waits, kills and counts. It speaks to no Redis, makes no thread, and does nothing that can
block: all that may fail is a child's work.
"""

from __future__ import annotations

import gc
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from supervisor.arbiter import embedded_redis, fork, pool_status
from supervisor.arbiter.announcer import Announcer
from supervisor.arbiter.check_process import ERRORS, CheckProcess
from supervisor.arbiter.children import Children
from supervisor.arbiter.commands import Commands
from supervisor.arbiter.forks import Forks
from supervisor.arbiter.http_listener import LEFTOVER_S, HttpListener
from supervisor.arbiter.locks import lease_token, name_taken
from supervisor.arbiter.loop import Loop
from supervisor.arbiter.services import API, BOOT_S, KEEPER, KEEPER_QUIET_S, NAMES, REDIS, Services
from supervisor.arbiter.shutdown import Shutdown
from supervisor.arbiter.stack_dumps import StackDumps
from supervisor.arbiter.systemd import SystemdNotifier
from supervisor.arbiter.terminal import Terminal
from supervisor.arbiter.upkeep import Autoscaler, Recycler
from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.control.server import ControlServer, listen
from supervisor.core.slot import Limits, State
from supervisor.errors import EXIT_REDIS, ConfigError, HandlerError, SupervisorError
from supervisor.http_bind import pool_bind
from supervisor.log import Limiter, logger
from supervisor.settings.paths import pool_paths
from supervisor.shared_state import HeaderField, SharedState

if TYPE_CHECKING:
    from supervisor.arbiter.entries import Entries, Specs
    from supervisor.arbiter.reload import ReloadState
    from supervisor.settings.load import Loaded

TICK_S = 1.0
#: At the end, for what workers left behind and what was killed with them.
REST_S = 0.2
#: Beyond what the boot check itself waits for Redis.
BOOT_CHECK_SLACK_S = 10.0


class Arbiter(Forks):
    """One pool's arbiter, from the first child to the last."""

    def __init__(
        self,
        loaded: Loaded,
        specs: Specs,
        entries: Entries,
        lock_fd: int,
        inherited: ReloadState | None,
        *,
        burst: bool,
    ) -> None:
        """Opens what it needs and starts nothing. Raises ConfigError when the control socket can't be made."""
        self.loaded, self.settings, self.specs, self.entries = loaded, loaded.settings, specs, entries
        self.burst = burst
        self.began_s = time.monotonic()
        self.paths = pool_paths(self.settings)
        self.log = logger(self.settings)
        self._limiter = Limiter()
        self.lock_fd = lock_fd
        self.inherited = inherited
        self.token = lease_token(self.paths)
        self.http = HttpListener(pool_bind(self.settings), inherited.http if inherited else None)
        if self.http.bind and not inherited:
            self.http.open(LEFTOVER_S)
        self.shared = SharedState(inherited.shared_fd if inherited else None)
        self.loop = Loop(self._wrong_turn)
        self.children = Children(self.loop)
        self.stack_dumps = StackDumps(inherited.stack_fds if inherited else None)
        pool = self.settings.pool
        limits = Limits(boot_s=pool.boot_limit_s, beat_s=pool.beat_limit_s, drain_s=pool.drain_s)
        slow = Limits(boot_s=BOOT_S, beat_s=KEEPER_QUIET_S, drain_s=pool.drain_s)
        shared = (self.loop, self.children, self.stack_dumps)
        self.services = Services(self.shared, *shared, slow, self.log, self._changed)
        self.pool = WorkerGroup(self.shared, self._fork_worker, *shared, limits, self.log, self._changed, burst=burst)
        self.shutdown = Shutdown(self.pool, self.services)
        self.commands = Commands(self)
        self.announcer = Announcer(self)
        self.terminal = Terminal()
        self.systemd = SystemdNotifier()
        self._upkeep = (Recycler(self), Autoscaler(self))
        self.control = ControlServer(self._listener(), self.paths.control, self.loop, self.commands.handle)
        self.redis: dict[str, Any] = inherited.redis if inherited else {}
        #: All workers have been READY once.
        self.began = False
        self._failure: SupervisorError | None = None
        self._check: CheckProcess | None = None

    def run(self) -> int:
        """Until the last child is gone; the exit code. Raises what kept the pool from starting."""
        fork.become_subreaper()
        self._obey_signals()
        self._tick()
        if self.inherited:
            self._go_on(self.inherited)
        else:
            self.shared.set(HeaderField.START_NS, time.monotonic_ns())
            self._boot()
        self.loop.run()
        self.control.close()
        self.loop.close()
        self.children.reap_rest(REST_S)
        if self._failure is not None:
            raise self._failure
        self.announcer.stopped(self.shutdown.exit_code)
        return self.shutdown.exit_code

    # Beginning

    def _boot(self) -> None:
        if not self.settings.redis.url:
            self._add_server()
            self.services.turn()
        limit_s = self.settings.redis.connect_timeout_s + BOOT_CHECK_SLACK_S
        try:
            self.announcer.booting()
            self._check = CheckProcess(self.loop, self.children, self._fork_boot, limit_s, self._booted)
        except (OSError, SupervisorError) as error:
            self.fail(SupervisorError(f"the boot check can't be started: {error}"))

    def _booted(self, code: int, report: dict[str, Any]) -> None:
        self._check = None
        if self.shutdown.begun:
            self._changed()
        elif code != 0:
            words = embedded_redis.last_words(self.paths) if self.services.get(REDIS) else ""
            hint = f"; the last line of {embedded_redis.log_path(self.paths)}: {words}" if words else ""
            self.fail(ERRORS.get(code, SupervisorError)(f"{report.get('error')}{hint if code == EXIT_REDIS else ''}"))
        else:
            self.redis = report.get("redis", {})
            self._open()

    def _open(self) -> None:
        gc.collect()
        gc.freeze()
        self.announcer.begin()
        self.pool.scale(self.settings.pool.first_workers)
        self.services.add(KEEPER, self._fork_keeper)
        if self.settings.api.enabled:
            self.services.add(API, self._fork_api, is_ready=self.http.is_served)
        self.services.turn()
        self.loop.at(time.monotonic() + self.settings.pool.boot_limit_s, self.announcer.show)

    def _go_on(self, inherited: ReloadState) -> None:
        """With the children of the image before this one; they are replaced one by one."""
        self.began = True
        self.systemd.ready()
        gc.collect()
        gc.freeze()
        spawns = {REDIS: self._fork_server, KEEPER: self._fork_keeper, API: self._fork_api}
        for slot in inherited.services:
            is_ready = self.http.is_served if NAMES[slot.number] == API else lambda: True
            self.services.add(NAMES[slot.number], spawns[NAMES[slot.number]], slot, is_ready)
        for slot in inherited.workers:
            self.pool.adopt(slot)
        self.pool.was_ready = True
        if self.settings.api.enabled and self.services.get(API) is None:
            self.services.add(API, self._fork_api, is_ready=self.http.is_served)
        elif not self.settings.api.enabled:
            self.services.leave(API, time.monotonic() + self.settings.pool.drain_s)
        configured = self.settings.pool.workers
        self.services.turn()
        self.pool.scale(configured if configured != inherited.configured else self.pool.size)
        self.commands.roll()

    # What follows from what

    def _changed(self) -> None:
        """Something about some child is different."""
        if self.shutdown.begun:
            self.commands.abandon()
            if self._check is not None:
                self._check.kill()
            elif self.shutdown.is_over():
                self.loop.stop()
            return
        if self._check is not None:
            return
        self.announcer.look()
        self.commands.step()
        if not self.pool.was_ready and any(slot.state is State.FAILED for slot in self.pool.slots.values()):
            self.fail(HandlerError("a worker can't start with this configuration; its own words are above"))
        elif self.burst and self.pool.slots and self.pool.size == 0 and not self.pool.living:
            self.stop("nothing is left")

    def fail(self, error: SupervisorError, *, drain: bool = False) -> None:
        """Give up: end all at once, or drain, and raise this in the end."""
        self._failure = self._failure or error
        if drain:
            self.stop(str(error))
            return
        self.http.close()
        self.shutdown.begin(self.settings.pool.drain_s)
        self.shutdown.hurry()
        self._changed()

    def _wrong_turn(self, error: Exception) -> None:
        """A bug of the arbiter's own: told, and the children live on; but a pool that never was is given up."""
        held_back = self._limiter.held_back(repr(error))
        if held_back is not None:
            self.log.error("internal error", held_back=held_back or None, exc_info=error)
        if not self.pool.was_ready and not self.shutdown.begun:
            self.fail(SupervisorError(f"internal error while starting: {error!r}"))

    def stop(self, why: str, drain_s: float | None = None) -> None:
        """Drain all within `drain_s` (default: as configured) and leave."""
        self.systemd.stopping()
        self.http.close()
        limit_s = self.settings.pool.drain_s if drain_s is None else drain_s
        self.announcer.draining(why, limit_s)
        self.shutdown.begin(limit_s)
        self._changed()

    def _end_signal(self, name: str) -> None:
        if self.shutdown.begun:
            self._quick(name)
        else:
            self.stop(name)

    def _hang_up(self) -> None:
        if not self.terminal.is_gone():
            self.commands.restart_by_signal()
        elif not self.shutdown.begun:
            self.stop("the terminal was closed")

    def _quick(self, name: str) -> None:
        self.log.info("quick stop", why=name)
        self.shutdown.hurry()
        self._changed()

    # Signals and time

    def _obey_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.on_signal(number, lambda number=number: self._end_signal(number.name))  # type: ignore[misc]
        self.loop.on_signal(signal.SIGQUIT, lambda: self._quick("SIGQUIT"))
        self.loop.on_signal(signal.SIGHUP, self._hang_up)
        self.loop.on_signal(signal.SIGTTIN, lambda: self.commands.scale_by(1))
        self.loop.on_signal(signal.SIGTTOU, lambda: self.commands.scale_by(-1))
        self.loop.on_signal(signal.SIGUSR1, lambda: self.log.info("status", **self.status()))
        if self.inherited:  # its predecessor blocked them all before it left
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            for missed in self.inherited.signals:
                signal.raise_signal(missed)

    def _tick(self) -> None:
        self.loop.at(time.monotonic() + min(TICK_S, self.systemd.watchdog_s or TICK_S), self._tick)
        self.control.tidy()
        if self.systemd.watchdog_s is not None:
            self.systemd.alive()
        self.systemd.status(pool_status.sentence(self))
        if self.began and not self.shutdown.begun:
            for upkeep in self._upkeep:
                upkeep.look()
        if self.shared.get(HeaderField.NAME_TAKEN) and not self.shutdown.begun:
            self.fail(name_taken(self.settings), drain=True)

    # Looking at it

    def status(self) -> dict[str, Any]:
        """What `status --json` shows, but for the groups, which only Redis knows."""
        return pool_status.document(self)

    def _listener(self) -> socket.socket:
        if self.inherited:
            return socket.socket(fileno=self.inherited.listener_fd)
        try:
            return listen(self.paths.control)
        except OSError as error:
            raise ConfigError(f"state_dir: the control socket {self.paths.control}: {error.strerror}") from None
