"""What really happened to each message, which no process knows, and whether the rules allow it.

The rules are those of a total queue (every message that was published is undelivered, pending, done or dead), and those
of this product: who is charged for a crash, how often a message is tried, and that nobody works on what another has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supervisor.core.ids import parse_id
from supervisor.core.outcome import CRASHED
from supervisor.keys import consumer_name, crashes_key, dead_key, isolated_key, retries_key

if TYPE_CHECKING:
    from tests.model.group import Id
    from tests.model.pool import Pool
    from tests.model.worker import Worker
    from tests.model.world import World


class BrokenRuleError(AssertionError):
    """The product did what it must not."""


@dataclass
class Ghost:
    """One message for one group, since it was published or put back."""

    id: Id
    poison: bool
    #: The workers whose handler has returned.
    done: list[Worker] = field(default_factory=list)
    #: When the next attempt is due -> how many failed before; and of how many Redis is known to keep the number.
    failures: dict[float, int] = field(default_factory=dict)
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
    #: The entry was deleted by hand; and then Redis dropped it from the pending list when it was to change hands.
    deleted: bool = False
    dropped: bool = False


class Ghosts:
    """All of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.of: dict[tuple[str, bytes], Ghost] = {}
        #: Consumers of which a message was taken away while it may have been running.
        self._blurred: set[bytes] = set()
        #: How much has happened that no server knows of.
        self.events = 0

    def began(self, worker: Worker, group: str, entry: bytes, failed_before: int) -> None:
        self.events += 1
        ghost = self.of[group, entry]
        self._forbid(worker in ghost.runners, f"{entry!r} runs twice in {worker.name}")
        self._forbid(
            worker in ghost.done and not ghost.torn, f"{entry!r} runs again in {worker.name}, which has done it"
        )
        self._forbid(ghost.runners and not ghost.torn, f"{entry!r} runs in two workers at once")
        self._forbid(failed_before >= self._world.options.max_deliveries, f"{entry!r} is tried too often")
        self._forbid(failed_before < ghost.kept and not ghost.torn, f"{entry!r}: failed attempts were forgotten")
        started = worker.words.consumer(self._world.stream, group)
        self._forbid(started and started.started() < parse_id(entry), f"{entry!r} runs unmarked")
        ghost.runners.append(worker)

    def ended(self, worker: Worker, group: str, entry: bytes) -> Ghost:
        self.events += 1
        ghost = self.of[group, entry]
        ghost.runners.remove(worker)
        return ghost

    def died(self, worker: Worker, *, by: tuple[str, bytes] | None = None) -> None:
        """The process is gone; `by`: the message that ended it."""
        self.events += 1
        running = [key for key, ghost in self.of.items() if worker in ghost.runners]
        for key in running:
            self.of[key].runners.remove(worker)
        if any(self.of[key].torn or self.of[key].deleted for key in running):
            self.blur(worker.name.encode())
            running = []
        elif len(running) > 1:
            running = []
        for key in running:
            self.of[key].deaths_alone += 1
        if by is not None:
            self.of[by].explosions += 1

    def blur(self, consumer: bytes) -> None:
        """What ended its process may have been taken away: the successor can't know, and may think it was another."""
        self._blurred.add(consumer)
        for key, ghost in self.of.items():
            ghost.deaths_alone += self.owner(*key) == consumer

    def owner(self, group: str, entry: bytes) -> bytes | None:
        held = self._world.server.streams[self._world.stream.encode()].groups[group.encode()]
        pending = held.pending.get(self.of[group, entry].id)
        return pending.consumer if pending else None

    def died_with_their_board(self, pool: Pool) -> None:
        """Only Redis tells then what ran alone, and it hears of it a round trip before and after: that counts, too."""
        before = {key: ghost.deaths_alone for key, ghost in self.of.items()}
        for worker in pool.living:
            self.died(worker)
        for group in self._world.groups:
            for slot in pool.workers:
                key = isolated_key(self._world.stream, group), consumer_name(pool.name, slot)
                held = group, self._world.server.call("HGET", *key)
                if held in before and self.of[held].deaths_alone == before[held]:
                    self.of[held].deaths_alone += 1

    def forgive(self) -> None:
        """A worker's marks are lost: should they have told of a poison message, one more death is needed."""
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
            crashes = server.hashes.get(crashes_key(stream, group).encode(), {})
            for (of, entry), ghost in self.of.items():
                if of == group:
                    pending = ghost.id in held.groups[name].pending
                    unread = ghost.id > held.groups[name].last
                    self._check_one(entry, ghost, pending or unread, letters.get(entry, []))
                    self._check_crashes(group, entry, ghost, int(crashes.get(entry, 0)), letters.get(entry, []))
            self._forbid(set(letters) - {entry for of, entry in self.of if of == group}, "a letter of nobody")

    def _check_one(self, entry: bytes, ghost: Ghost, open_: bool, letters: list[tuple[str, int]]) -> None:
        if not open_ and not (ghost.done or letters or ghost.deleted):
            raise BrokenRuleError(f"{entry!r} is lost: neither pending, nor done, nor dead")
        if len(letters) > 1:
            raise BrokenRuleError(f"{entry!r} has two letters")
        if any(deliveries > self._world.options.max_deliveries for _, deliveries in letters):
            raise BrokenRuleError(f"{entry!r} was tried too often")

    def _check_crashes(
        self, group: str, entry: bytes, ghost: Ghost, crashes: int, letters: list[tuple[str, int]]
    ) -> None:
        most = self._world.options.max_crashes
        charged = most if any(reason == CRASHED for reason, _ in letters) else crashes
        if charged > ghost.deaths_alone and self.owner(group, entry) not in self._blurred:
            raise BrokenRuleError(f"{entry!r} is charged {charged} crashes of {ghost.deaths_alone}")
        if ghost.explosions > most + 1 + ghost.forgiven:
            raise BrokenRuleError(f"{entry!r} has ended {ghost.explosions} processes, {ghost.forgiven} forgiven")

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
                # What a host that was wrongly declared dead says of a retry may come after another's ack, and stays.
                known = {
                    entry for (of, entry), ghost in self.of.items() if of == group and (ghost.dropped or ghost.torn)
                }
                left = set(server.call("HKEYS", key)) - known
                self._forbid(left, f"{left} are left in {key}")

    def _letters(self, group: str) -> dict[bytes, list[tuple[str, int]]]:
        """By message: reason and deliveries of each."""
        dead = self._world.server.streams.get(dead_key(self._world.stream, group).encode())
        found: dict[bytes, list[tuple[str, int]]] = {}
        for flat in dead.entries.values() if dead else ():
            letter = dict(zip(flat[::2], flat[1::2], strict=True))
            found.setdefault(letter[b"id"], []).append((letter[b"reason"].decode(), int(letter[b"deliveries"])))
        return found

    @staticmethod
    def _forbid(broken: object, what: str) -> None:
        if broken:
            raise BrokenRuleError(what)
