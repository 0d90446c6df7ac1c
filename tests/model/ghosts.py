"""What really happened to each message, which no process knows, and whether the rules allow it.

The rules are those of a total queue (every message that was published is undelivered, pending, done or dead), and those
of this product: who is charged for a crash, how often a message is tried, and that nobody works on what another has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supervisor.core.ids import parse_id
from supervisor.core.outcome import CRASHED
from supervisor.names import crashes_key, dead_key, retries_key

if TYPE_CHECKING:
    from tests.model.worker import Worker
    from tests.model.world import World


class BrokenRuleError(AssertionError):
    """The product did what it must not."""


@dataclass
class Ghost:
    """One message for one group, since it was published or put back."""

    poison: bool
    done: int = 0
    #: Attempts that failed, and how many of them Redis is known to keep.
    failures: int = 0
    kept: int = 0
    #: Workers that have its handler running now.
    runners: list[Worker] = field(default_factory=list)
    #: Deaths of processes that had it, and nothing else, running.
    deaths_alone: int = 0
    #: How often it ended a process, and how often one may do so without being charged for it: see `forgive`.
    explosions: int = 0
    forgiven: int = 0
    #: It was taken from a host that was wrongly declared dead: two may run it.
    torn: bool = False
    #: The entry was deleted by hand.
    deleted: bool = False


class Ghosts:
    """All of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.of: dict[tuple[str, bytes], Ghost] = {}

    def began(self, worker: Worker, group: str, entry: bytes, failed_before: int) -> None:
        ghost = self.of[group, entry]
        self._forbid(worker in ghost.runners, f"{entry!r} runs twice in {worker.name}")
        self._forbid(ghost.runners and not ghost.torn, f"{entry!r} runs in two workers at once")
        self._forbid(failed_before >= self._world.options.max_deliveries, f"{entry!r} is tried too often")
        self._forbid(failed_before < ghost.kept and not ghost.torn, f"{entry!r}: failed attempts were forgotten")
        started = worker.words.row(self._world.stream, group)
        self._forbid(started and started.started() < parse_id(entry), f"{entry!r} runs unmarked")
        ghost.runners.append(worker)

    def ended(self, worker: Worker, group: str, entry: bytes) -> Ghost:
        ghost = self.of[group, entry]
        ghost.runners.remove(worker)
        return ghost

    def died(self, worker: Worker, *, by: tuple[str, bytes] | None = None) -> None:
        """The process is gone; `by`: the message that ended it."""
        running = [key for key, ghost in self.of.items() if worker in ghost.runners]
        for key in running:
            self.of[key].runners.remove(worker)
        if len(running) == 1:
            self.of[running[0]].deaths_alone += 1
        if by is not None:
            self.of[by].explosions += 1

    def forgive(self, worker: Worker) -> None:
        """What this worker's marks say of a poison message is lost: one more death is needed to know it."""
        for ghost in self.of.values():
            ghost.forgiven += ghost.poison

    # The rules

    def check(self) -> None:
        """Raises BrokenRuleError."""
        server, stream = self._world.server, self._world.stream
        held = server.streams[stream.encode()]
        for group in self._world.groups:
            name = group.encode()
            if name not in held.groups:
                continue
            letters = self._letters(group)
            crashes = server.call("HGETALL", crashes_key(stream, group))
            for (of, entry), ghost in self.of.items():
                if of == group:
                    pending = parse_id(entry) in held.groups[name].pending
                    unread = parse_id(entry) > held.groups[name].last
                    self._check_one(entry, ghost, pending or unread, letters.get(entry, []))
                    self._check_crashes(entry, ghost, int(crashes.get(entry, 0)), letters.get(entry, []))
            self._forbid(set(letters) - {entry for of, entry in self.of if of == group}, "a letter of nobody")

    def _check_one(self, entry: bytes, ghost: Ghost, open_: bool, letters: list[tuple[str, int]]) -> None:
        settled = ghost.done or letters or ghost.deleted
        self._forbid(not open_ and not settled, f"{entry!r} is lost: neither pending, nor done, nor dead")
        self._forbid(len(letters) > 1, f"{entry!r} has two letters")
        most = self._world.options.max_deliveries
        self._forbid(any(deliveries > most for _, deliveries in letters), f"{entry!r} was tried too often")

    def _check_crashes(self, entry: bytes, ghost: Ghost, crashes: int, letters: list[tuple[str, int]]) -> None:
        most = self._world.options.max_crashes
        charged = most if any(reason == CRASHED for reason, _ in letters) else crashes
        self._forbid(charged > ghost.deaths_alone, f"{entry!r} is charged {charged} crashes of {ghost.deaths_alone}")
        late = ghost.explosions > most + 1 + ghost.forgiven
        self._forbid(late, f"{entry!r} has ended {ghost.explosions} processes, {ghost.forgiven} of them forgiven")

    def check_end(self) -> None:
        """When all is quiet. Raises BrokenRuleError."""
        self.check()
        server, stream = self._world.server, self._world.stream
        consumers = {worker.name.encode() for pool in self._world.pools for worker in pool.living}
        for group in self._world.groups:
            held = server.streams[stream.encode()].groups[group.encode()]
            self._forbid(held.pending, f"{dict(held.pending)} are still pending")
            self._forbid(self._world.unread(stream, group), "not all was read")
            self._forbid(held.consumers - consumers, f"stale consumers: {held.consumers - consumers}")
            letters = self._letters(group)
            for (of, entry), ghost in self.of.items():
                if of == group and ghost.poison and not ghost.deleted:
                    self._forbid(entry not in letters, f"{entry!r} ends processes and is not dead")
            for key in (retries_key(stream, group), crashes_key(stream, group)):
                left = server.call("HKEYS", key)
                self._forbid(left, f"{left} are left in {key}")

    def _letters(self, group: str) -> dict[bytes, list[tuple[str, int]]]:
        """By message: reason and deliveries of each."""
        found: dict[bytes, list[tuple[str, int]]] = {}
        for _, flat in self._world.server.call("XRANGE", dead_key(self._world.stream, group), "-", "+"):
            letter = dict(zip(flat[::2], flat[1::2], strict=True))
            found.setdefault(letter[b"id"], []).append((letter[b"reason"].decode(), int(letter[b"deliveries"])))
        return found

    @staticmethod
    def _forbid(broken: object, what: str) -> None:
        if broken:
            raise BrokenRuleError(what)
