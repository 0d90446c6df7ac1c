"""Which child is forked with what: the arbiter's worker, keeper, boot check, HTTP service and server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.arbiter import embedded_redis, fork
from supervisor.arbiter.locks import lock_slot
from supervisor.arbiter.services import API, KEEPER, REDIS
from supervisor.arbiter.worker_group import worker_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.arbiter.children import Children
    from supervisor.arbiter.entries import Entries, Specs
    from supervisor.arbiter.http_listener import HttpListener
    from supervisor.arbiter.loop import Loop
    from supervisor.arbiter.services import Services
    from supervisor.arbiter.stack_dumps import StackDumps
    from supervisor.arbiter.worker_group import WorkerGroup
    from supervisor.control.server import ControlServer
    from supervisor.settings.load import Loaded
    from supervisor.settings.model import Settings
    from supervisor.settings.paths import PoolPaths
    from supervisor.shared_state import SharedState


class Forks:
    """The part of the arbiter that forks; the attributes are the arbiter's own."""

    loaded: Loaded
    settings: Settings
    specs: Specs
    paths: PoolPaths
    shared: SharedState
    entries: Entries
    loop: Loop
    children: Children
    pool: WorkerGroup
    services: Services
    stack_dumps: StackDumps
    control: ControlServer
    http: HttpListener
    lock_fd: int
    token: str
    burst: bool

    def fork(self, name: str, body: Callable[[], int]) -> int:
        """A child without the arbiter's descriptors, but the service has its http. Raises OSError, ForkUnsafeError."""
        control, stack_fd = self.control.fds(), self.stack_dumps.fresh(name)
        close = [*self.loop.fds(), *self.children.fds(), *self.stack_dumps.fds(), *control, self.lock_fd]
        close += [] if name == API else self.http.fds()
        own = [*control, *self.http.sockets()]
        return fork.fork_child(body, name=name, stack_fd=stack_fd, close=close, own_sockets=own)

    def _fork_worker(self, slot: int) -> int:
        return self.fork(worker_name(slot), lambda: self._become_worker(slot))

    def _become_worker(self, slot: int) -> int:
        lock_slot(self.paths, slot)
        return self.entries.worker(self.settings, self.specs, self.shared, slot, self.burst, self.pool.crash(slot))

    def _fork_keeper(self) -> int:
        return self.fork(KEEPER, lambda: self.entries.keeper(self.settings, self.specs, self.shared, self.token))

    def _fork_boot(self, out_fd: int) -> int:
        return self.fork("boot", lambda: self.entries.boot(self.settings, self.specs, self.token, out_fd))

    def _fork_api(self) -> int:
        self.http.open()
        self.http.renew()
        command, environment = self.entries.api(self.loaded)
        return self.fork(API, lambda: fork.exec_command(command, environment | self.http.hand_on()))

    def _fork_server(self) -> int:
        binary = embedded_redis.find_binary()
        return self.fork(REDIS, lambda: embedded_redis.become_server(binary, self.settings, self.paths))

    def _add_server(self) -> None:
        embedded_redis.find_binary()
        embedded_redis.make_folders(self.paths)
        self.services.add(REDIS, self._fork_server)
