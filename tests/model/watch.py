"""The server, watched: what is claimed, recorded, given up and leased there, and whether it may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supervisor.broker import scripts
from supervisor.keeper.lease import LEASE_MS
from supervisor.keys import WAITING_CONSUMERS, host_key
from tests.model.ghosts import BrokenRuleError, Ghost
from tests.model.group import written
from tests.model.server import Server

if TYPE_CHECKING:
    from tests.model.modelled_pool import Pool
    from tests.model.process import Worker
    from tests.model.world import World

_TAKE_LEASE, _RECORD_RETRY, _DEAD_LETTER, _DEAD_LETTER_TURN = (
    one.text.encode()
    for one in (scripts.TAKE_LEASE, scripts.RECORD_RETRY, scripts.DEAD_LETTER, scripts.DEAD_LETTER_TURN)
)


class WatchedServer(Server):
    """Raises BrokenRuleError when a command or a script does what it must not."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.deleted = self._deleted
        #: When it has seen that nothing more is pending for it, a message is published.
        self.retiring: Worker | None = None

    def cmd_xpending(self, key: bytes, name: bytes, *rest: bytes) -> list[Any]:
        reply = super().cmd_xpending(key, name, *rest)
        if not reply and self.retiring is not None and self._world.network.sender is self.retiring:
            for _ in self._world.workers:  # each serves one that waits
                self._world.network.at(self._world.clock.now_s, self._world.publish)
            self.retiring = None
        return reply

    def cmd_xclaim(self, key: bytes, group: bytes, consumer: bytes, *rest: bytes) -> list[Any]:
        pending = self.stream(key).group(group).pending
        before = {entry: held.consumer for entry, held in pending.items()}
        reply = super().cmd_xclaim(key, group, consumer, *rest)
        for entry, owner in before.items():
            ghost = self._world.ghosts.at.get((key.decode(), group.decode(), written(entry)))
            if ghost is not None and entry not in pending:
                ghost.dropped = True
            elif ghost is not None and pending[entry].consumer != owner:
                self._changed_hands(ghost, owner.decode(), consumer.decode())
        return reply

    def cmd_xreadgroup(self, _: bytes, name: bytes, consumer: bytes, *rest: bytes) -> Any:
        reply = super().cmd_xreadgroup(_, name, consumer, *rest)
        if rest[-1] != b">":
            for key, entries in reply:
                for entry, _fields in entries:
                    ghost = self._world.ghosts.at[key.decode(), name.decode(), entry]
                    ghost.scanned_by, ghost.scanned_s = self._world.network.sender, self._world.clock.now_s
        return reply

    def cmd_xack(self, key: bytes, group: bytes, *ids: bytes) -> int:
        sender = self._world.network.sender
        for entry in ids:
            if not sender.alive and (ghost := self._world.ghosts.at.get((key.decode(), group.decode(), entry))):
                ghost.acked_late = True
                if ghost.suspected_by:
                    self._world.ghosts.blur(ghost.suspected_by)  # its successor does not see that it ran
        return super().cmd_xack(key, group, *ids)

    def cmd_xadd(self, key: bytes, entry: bytes, *pairs: bytes) -> bytes:
        added = super().cmd_xadd(key, entry, *pairs)
        self._world.added(key.decode(), added, pairs)
        return added

    def run_script(self, script: bytes, keys: list[bytes], arguments: list[bytes]) -> Any:
        if script == _TAKE_LEASE:
            self._lease_taken(keys[0])
        reply = super().run_script(script, keys, arguments)
        if script == _RECORD_RETRY:
            self._retry_recorded(self._ghost(keys[0], arguments[0], arguments[1]), arguments[2], stored=bool(reply))
        elif script == _DEAD_LETTER and reply:
            self._given_up(self._ghost(keys[0], arguments[0], arguments[1]))
        elif script == _DEAD_LETTER_TURN and reply[0]:
            name = arguments[5].rpartition(b"@")[2]
            self._given_up(self._ghost(keys[int(arguments[4]) - 1], arguments[0], name))
        return reply

    def _retry_recorded(self, ghost: Ghost, record: bytes, *, stored: bool) -> None:
        attempts, due_ms, _ = map(int, record.split(b":"))
        if attempts > ghost.failed and not ghost.torn:
            raise BrokenRuleError(f"{ghost.place!r}: {attempts} attempts recorded of {ghost.failed}")
        if stored and attempts < ghost.kept and self._world.network.sender.alive and not ghost.torn:
            raise BrokenRuleError(f"{ghost.place!r}: {attempts} attempts recorded after {ghost.kept}")
        if stored:
            ghost.kept, ghost.due_ms = attempts, due_ms
            ghost.recorded_late |= not self._world.network.sender.alive

    def _given_up(self, ghost: Ghost) -> None:
        ghost.given_up_by, ghost.given_up_s = self._world.network.sender, self._world.clock.now_s

    def _lease_taken(self, key: bytes) -> None:
        for pool in self._world.pools:
            if key == host_key(pool.name).encode() and self.cmd_get(key) is None:
                pool.leased_s = self._world.clock.now_s

    def _ghost(self, key: bytes, group: bytes, entry: bytes) -> Ghost:
        return self._world.ghosts.at[key.decode(), group.decode(), entry]

    @staticmethod
    def _deleted(_: bytes, consumer: bytes, lost: int) -> None:
        if lost:
            raise BrokenRuleError(f"{consumer!r} was deleted with {lost} pending")

    def _changed_hands(self, ghost: Ghost, owner: str, heir: str) -> None:
        ghost.forgiven += ghost.explosions > 0  # the marks stay behind: its last death is not charged
        if ghost.suspected_by == owner:
            ghost.suspected_by = ""
            ghost.forgiven += ghost.poison  # nor is the next, which has it beside others
        if heir in WAITING_CONSUMERS:
            if ghost.runners and not ghost.may_run_twice:
                raise BrokenRuleError(f"{ghost.place!r} is put back to wait while it runs")
            return
        taker = next(pool for pool in self._world.pools if heir.startswith(pool.name + ":"))
        for pool in self._world.pools:
            if pool.up and owner.startswith(pool.name + ":") and pool is not taker:
                self._world.ghosts.blur(owner)  # its next incarnation may find only a part of what the dead one had
            for worker in pool.living:
                if worker.name == owner and not (self._waits_unknown(ghost, worker) or self._waits_again(ghost, heir)):
                    self._check_taken(ghost, worker, taker)

    def _waits_unknown(self, ghost: Ghost, worker: Worker) -> bool:
        """It waits for its turn, and the worker that has read it has not looked at it yet, or has forgotten it."""
        waits = self._world.specs_of[ghost.key[0]].options.is_limited
        in_hand = [*worker.in_hand, *(place for place, _ in worker.waiting), *worker.with_turns]
        return waits and ghost.place not in in_hand

    def _waits_again(self, ghost: Ghost, heir: str) -> bool:
        """A worker takes it over with its turn, and its group was made again: the rows do not know what was in hand."""
        return ghost.read_again and self._world.network.sender.name == heir

    def _check_taken(self, ghost: Ghost, worker: Worker, taker: Pool) -> None:
        """A message may be taken from a living worker only when its host had no lease for a time since it has it."""
        now_s, pool = self._world.clock.now_s, worker.pool
        if pool is taker:
            if not (worker.stopping or worker.only_hands_over):
                raise BrokenRuleError(f"{ghost.place!r} was taken from {worker.name}, which lives")
            return
        is_leased = self.cmd_get(host_key(pool.name).encode()) is not None
        if is_leased and now_s - pool.leased_s > LEASE_MS / 1000:
            raise BrokenRuleError(f"{ghost.place!r} was taken from {worker.name}, whose pool holds its lease")
        if now_s - taker.seen_since_s < LEASE_MS / 1000:
            raise BrokenRuleError(f"{ghost.place!r} was taken by a keeper that had not seen Redis for a lease")
        ghost.torn = True
        ghost.forgiven += 2  # it runs on both hosts, and the marks of the first are not those of the second
