"""Which child is forked with what: the arbiter's worker, keeper, boot check, HTTP service and server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.arbiter import embedded, fork, slot_lock
from supervisor.arbiter.pool import worker_name
from supervisor.arbiter.services import API, KEEPER, REDIS

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.arbiter.children import Children
    from supervisor.arbiter.door import Door
    from supervisor.arbiter.entries import Entries, Specs
    from supervisor.arbiter.loop import Loop
    from supervisor.arbiter.pool import Pool
    from supervisor.arbiter.services import Services
    from supervisor.arbiter.stacks import Stacks
    from supervisor.control.server import ControlServer
    from supervisor.settings.load import Loaded
    from supervisor.settings.model import Settings
    from supervisor.settings.place import Place
    from supervisor.shared_state import SharedState


class Forks:
    """The part of the arbiter that forks; the attributes are the arbiter's own."""

    loaded: Loaded
    settings: Settings
    specs: Specs
    place: Place
    shared: SharedState
    entries: Entries
    loop: Loop
    children: Children
    pool: Pool
    services: Services
    stacks: Stacks
    control: ControlServer
    door: Door
    lock_fd: int
    token: str
    burst: bool

    def fork(self, name: str, body: Callable[[], int]) -> int:
        """A child without the arbiter's descriptors, but the service has its door. Raises OSError, ForkUnsafeError."""
        control, stack_fd = self.control.fds(), self.stacks.fresh(name)
        close = [*self.loop.fds(), *self.children.fds(), *self.stacks.fds(), *control, self.lock_fd]
        close += [] if name == API else self.door.fds()
        own = [*control, *self.door.sockets()]
        return fork.fork_child(body, name=name, stack_fd=stack_fd, close=close, own_sockets=own)

    def _fork_worker(self, slot: int) -> int:
        return self.fork(worker_name(slot), lambda: self._become_worker(slot))

    def _become_worker(self, slot: int) -> int:
        slot_lock.hold(self.place, slot)
        return self.entries.worker(self.settings, self.specs, self.shared, slot, self.burst, self.pool.crash(slot))

    def _fork_keeper(self) -> int:
        return self.fork(KEEPER, lambda: self.entries.keeper(self.settings, self.specs, self.shared, self.token))

    def _fork_boot(self, out_fd: int) -> int:
        return self.fork("boot", lambda: self.entries.boot(self.settings, self.specs, self.token, out_fd))

    def _fork_api(self) -> int:
        self.door.open()
        self.door.renew()
        command, environment = self.entries.api(self.loaded)
        return self.fork(API, lambda: fork.exec_command(command, environment | self.door.hand_on()))

    def _fork_server(self) -> int:
        binary = embedded.find_binary()
        return self.fork(REDIS, lambda: embedded.become_server(binary, self.settings, self.place))

    def _add_server(self) -> None:
        embedded.find_binary()
        embedded.make_folders(self.place)
        self.services.add(REDIS, self._fork_server)
