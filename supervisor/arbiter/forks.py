"""Which child is forked with what: the arbiter's worker, keeper, boot check, HTTP service and server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.arbiter import embedded, fork
from supervisor.arbiter.services import REDIS

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.arbiter.children import Children
    from supervisor.arbiter.entries import Entries, Specs
    from supervisor.arbiter.loop import Loop
    from supervisor.arbiter.services import Services
    from supervisor.board import Board
    from supervisor.control.server import ControlServer
    from supervisor.settings.load import Loaded
    from supervisor.settings.model import Settings
    from supervisor.settings.place import Place


class Forks:
    """The part of the arbiter that forks; the attributes are the arbiter's own."""

    loaded: Loaded
    settings: Settings
    specs: Specs
    place: Place
    board: Board
    entries: Entries
    loop: Loop
    children: Children
    services: Services
    control: ControlServer
    lock_fd: int
    token: str
    burst: bool

    def fork(self, name: str, body: Callable[[], int]) -> int:
        """A child without any of the arbiter's descriptors. Raises OSError, ForkUnsafeError."""
        control = self.control.fds()
        close = [*self.loop.fds(), *self.children.fds(), *control, self.lock_fd]
        return fork.fork_child(body, name=name, close=close, own_sockets=control)

    def _fork_worker(self, slot: int) -> int:
        entry, settings, specs = self.entries.worker, self.settings, self.specs
        return self.fork(f"worker {slot}", lambda: entry(settings, specs, self.board, slot, self.burst))

    def _fork_keeper(self) -> int:
        return self.fork("keeper", lambda: self.entries.keeper(self.settings, self.specs, self.board, self.token))

    def _fork_boot(self, out_fd: int) -> int:
        return self.fork("boot", lambda: self.entries.boot(self.settings, self.specs, self.token, out_fd))

    def _fork_api(self) -> int:
        command, environment = self.entries.api(self.loaded)
        return self.fork("api", lambda: fork.exec_command(command, environment))

    def _fork_server(self) -> int:
        binary = embedded.find_binary()
        return self.fork("redis", lambda: embedded.become_server(binary, self.settings, self.place))

    def _add_server(self) -> None:
        embedded.find_binary()
        embedded.make_folders(self.place)
        self.services.add(REDIS, self._fork_server)
