"""What can happen to the two pools of a world.

A history is a list of moves, each a name and two numbers: which of the things that could be moved, and how. Between
moves, processes and the network go on in an order that the seed decides. So a seed makes a history, a file keeps those
that broke a rule, and leaving moves out makes one short.
"""

import random
from collections.abc import Sequence

from supervisor.broker.scripts import DROP_HALTING, PUBLISH_LATER, REPLAY
from supervisor.core.later import to_member
from supervisor.core.options import HALT
from supervisor.keeper.lease import LEASE_MS
from supervisor.keys import (
    WAITING_CONSUMERS,
    crashes_key,
    dead_key,
    later_key,
    released_key,
    replay_key,
    retries_key,
    turn_field,
    turn_key,
)
from tests.model.ghosts import LETTERS_OF_BOTH, Ghost
from tests.model.group import written
from tests.model.handlers import Kind
from tests.model.modelled_pool import Pool
from tests.model.network import Loss, Mode
from tests.model.process import SLOTS, Worker, in_this_world
from tests.model.stepped_loop import Clock
from tests.model.world import MESSAGES_MAX, World

Move = tuple[str, int, int]

#: How much time a tick may be.
TICKS_S = (0.06, 0.5, 1.1, 4.0, LEASE_MS / 1000 + 1)
#: Two leases, some backoffs and some deaths of each poison message need no more.
SETTLE_S = 400.0
#: A pause is heard with the next beat.
_OBEYS_S = 2.0
#: A worker that has lost a connection is as before within this time; one that waits for an answer in vain, in that.
_LOST_S = 2.0
_STALLED_S = 14.0


class Moves(World):
    """The moves; one that is not possible now is none."""

    def play(self, move: Move) -> None:
        """Raises BrokenRuleError."""
        name, which, how = move
        getattr(self, f"move_{name}")(which, how)
        self._after(None)

    def _disturb(self) -> None:
        for pool in self.pools:
            pool.disturb(_LOST_S)

    def move_publish(self, _: int, how: int) -> None:
        for at in range(1 + how % 4):
            poison, undecodable = (how + at) % 9 == 0, (how + at) % 11 == 5
            self.publish(poison=poison, undecodable=undecodable)

    def move_flood(self, which: int, how: int) -> None:
        """A backlog of several batches."""
        for _ in range(4):
            self.move_publish(which, how)

    def move_later(self, which: int, how: int) -> None:
        """A message for later; or one that waits is cancelled or put off."""
        if self.network.mode is not Mode.NOTHING:
            return
        if self.limits.later and which % 3 == 0:
            number = sorted(self.limits.later)[how % len(self.limits.later)]
            if how % 2:
                if self.network.do("ZREM", later_key(self.stream), self._members[number]):
                    del self.limits.later[number]
                return
        elif self.published < MESSAGES_MAX:
            fields = self._next_fields(poison=how % 9 == 0, undecodable=how % 11 == 0)
            number = self.published
            self._members[number] = to_member(f"m{number}", fields)
        else:
            return
        after_ms = int(TICKS_S[how % 4] * 1000)
        self.limits.later[number] = self.clock.now_ms + after_ms
        arguments = (after_ms, "after", "", 0, f"m{number}", self._members[number])
        self.network.do("EVAL", PUBLISH_LATER.text, 1, later_key(self.stream), *arguments)

    def move_commit(self, _: int, how: int) -> None:
        """Transactions commit that have a message each."""
        for _ in range(1 + how % 4):
            if self.published < MESSAGES_MAX:
                fields = self._next_fields(poison=False, undecodable=False)
                self.limits.committed.append(self.published)
                self.outbox.add(self.published, self.stream, fields)
                self.has_outbox = True

    def move_kill_relay(self, which: int, _: int) -> None:
        pool = self.pools[which % 2]
        if pool.obeys and pool.relay is not None:
            pool.start_relay()

    def move_step(self, which: int, how: int) -> None:
        """A few callbacks."""
        for _ in range(1 + how):
            self.step(1 + which, self.clock.now_s + 1)

    def move_tick(self, _: int, how: int) -> None:
        self.run(TICKS_S[how % len(TICKS_S)])

    def move_lose(self, which: int, how: int) -> None:
        """A connection is lost in the middle of something."""
        if links := [link for process in self.processes for link in process.links]:
            link, loss = links[which % len(links)], list(Loss)[how % len(Loss)]
            link.process.pool.disturb(_STALLED_S if loss is Loss.STALLED else _LOST_S)
            if isinstance(link.process, Worker) and link.process.may_charge:
                self.ghosts.forgive()  # what was to be charged may not be
            link.lose(loss)

    def move_sever(self, which: int, how: int) -> None:
        """A worker's reads are lost and begin again, before the server has noticed."""
        if self.workers:
            worker = self.workers[which % len(self.workers)]
            worker.pool.disturb(_LOST_S)
            worker.lose_reads()
            self.run(TICKS_S[how % 3])
            for _ in self.workers:
                self.publish()

    def move_restart(self, _: int, how: int) -> None:
        """The server starts again; sometimes it loads for a while."""
        self._disturb()
        if any(worker.may_charge for worker in self.workers):
            self.ghosts.forgive()  # what was to be charged may not be
        self.network.restart()
        for pool in self.pools:
            pool.seen_since_s = self.clock.now_s
        if how % 2:
            self._refuse(Mode.LOADING)

    def move_outage(self, which: int, how: int) -> None:
        """The server is away for longer than a lease holds."""
        self.move_restart(which, 1)
        self.run(TICKS_S[-1])
        self.move_accept(which, how)
        for pool in self.pools:
            pool.seen_since_s = self.clock.now_s

    def move_refuse(self, which: int, how: int) -> None:
        self.move_publish(which, how)
        self._refuse([Mode.OOM, Mode.READONLY][which % 2])
        self.run(TICKS_S[how % 4])
        if how % 3 == 0:
            self.move_accept(which, how)
            self.run(TICKS_S[3])

    def _refuse(self, mode: Mode) -> None:
        self._disturb()
        self.network.mode, self.has_refused = mode, True

    def move_accept(self, _: int, __: int) -> None:
        self._disturb()
        self.network.mode = Mode.NOTHING

    def move_lose_group(self, which: int, how: int) -> None:
        """A group is destroyed by hand, or by what was not yet on disk: its workers make it again and read from 0."""
        stream, group = self.sources[which % len(self.sources)]
        if how % 4 or self.network.mode is not Mode.NOTHING or self.group(stream, group) is None:
            return
        self._disturb()
        for owner in {self.ghosts.owner(old) for old in self.ghosts.at.values() if old.place[:2] == (stream, group)}:
            if owner not in ("", *WAITING_CONSUMERS):
                self.ghosts.blur(owner)  # its next incarnation no longer finds all that the dead one had
        entries = self.server.streams[stream.encode()].entries
        for place, old in list(self.ghosts.at.items()):
            if place[:2] == (stream, group) and old.deleted:
                old.torn = True  # what is recorded of it from now on stays: no ack removes it
            if place[:2] == (stream, group) and old.id in entries:  # a copy that is settled is deleted
                new = Ghost(old.key, place, old.poison, old.number, old.turn, runners=old.runners)
                new.torn, new.deleted, new.hangs = True, old.deleted, old.hangs
                new.forgiven, new.undecodable, new.read_again = 99, old.undecodable, True
                new.publishes_first, new.letter_dropped = old.publishes_first, old.letter_dropped
                new.was_done = bool(old.done) or old.was_done
                self.ghosts.at[place] = new
                latest = self.ghosts.of[old.key]  # the message itself, or its replayed copy
                new.letters_max = latest.letters_max = LETTERS_OF_BOTH
                latest.read_again = True
                if latest is old:
                    self.ghosts.of[old.key] = new
        self.network.do("XGROUP", "DESTROY", stream, group)

    def move_kill(self, which: int, _: int) -> None:
        """SIGKILL from outside."""
        if workers := [worker for worker in self.workers if not worker.left]:
            worker = workers[which % len(workers)]
            self.ghosts.died(worker)
            if worker.may_charge:
                self.ghosts.forgive()  # what its predecessor died of may never be charged
            worker.pool.gone(worker, crashed=True)

    def move_drain(self, which: int, _: int) -> None:
        """A worker is replaced."""
        if workers := [worker for worker in self.workers if not worker.stopping and worker.pool.obeys]:
            worker = workers[which % len(workers)]
            worker.pool.drain(worker)

    def move_overrun(self, which: int, _: int) -> None:
        """A worker that drains for too long is ended."""
        if workers := [worker for worker in self.workers if worker.stopping and worker.pool.obeys and not worker.left]:
            worker = workers[which % len(workers)]
            self.ghosts.died(worker, crashed=False)
            worker.pool.gone(worker, crashed=False)

    def move_scale(self, which: int, how: int) -> None:
        pool = self.pools[which % 2]
        if pool.obeys:
            pool.scale(1 + how % SLOTS)

    def move_retire(self, which: int, how: int) -> None:
        """A slot is removed whose read stays behind at the server, and is served while the worker leaves."""
        pool = self.pools[which % 2]
        if pool.obeys and pool.size > 1 and (worker := pool.workers[pool.size - 1]) is not None:
            pool.disturb(_LOST_S)
            worker.lose_reads()
            pool.scale(pool.size - 1)
            self.server.retiring = worker
            self.run(TICKS_S[how % 3])

    def move_pause(self, which: int, how: int) -> None:
        pool = self.pools[which % 2]
        if pool.obeys:
            pool.pause(pool.paused_s is None)
            if how % 3 == 0:
                self.run(_OBEYS_S)
                self.move_publish(which, how)
                self.run(_OBEYS_S)

    def move_kill_arbiter(self, which: int, _: int) -> None:
        """SIGKILL of the arbiter, or the end of its host."""
        self._die(self.pools[which % 2], with_host=self.chance.random() < 0.5)

    def _die(self, pool: Pool, *, with_host: bool) -> None:
        if pool.up:
            self.ghosts.died_with_their_pool(pool)
            self.ghosts.forgive()
            pool.die(with_host=with_host)

    def move_reboot(self, which: int, how: int) -> None:
        """A host ends and is back at once; the server still delivers to connections of before."""
        pool = self.pools[which % 2]
        if pool.up and not pool.cut_off:
            self._die(pool, with_host=True)
            pool.start(1 + how % SLOTS)
            self.run(TICKS_S[how % 3])
            self.move_publish(which, how)

    def move_stop(self, which: int, _: int) -> None:
        if self.pools[which % 2].obeys:
            self.pools[which % 2].stop()

    def move_start(self, which: int, how: int) -> None:
        pool = self.pools[which % 2]
        if not pool.up:
            pool.start(1 + how % SLOTS, burst=how % 7 == 6)

    def move_freeze(self, which: int, _: int) -> None:
        self.pools[which % 2].frozen = self.pools[which % 2].up

    def move_cut_off(self, which: int, how: int) -> None:
        pool = self.pools[which % 2]
        if pool.up:
            pool.cut_off = True
            for process in self.processes:
                for link in list(process.links) if process.pool is pool else ():
                    link.lose(list(Loss)[how % 3])

    def move_recover(self, which: int, _: int) -> None:
        """From either."""
        pool = self.pools[which % 2]
        if pool.frozen or pool.cut_off:
            pool.disturb(_LOST_S)
        if pool.cut_off:
            pool.seen_since_s = self.clock.now_s
        pool.frozen = pool.cut_off = False

    def move_kill_keeper(self, which: int, _: int) -> None:
        if self.pools[which % 2].obeys:
            self.pools[which % 2].start_keeper()

    def move_replay(self, which: int, how: int) -> None:
        group = self.groups[how % len(self.groups)]
        dead, copies = dead_key(self.stream, group), replay_key(self.stream, group)
        letters = self.server.call("XRANGE", dead, "-", "+")
        if not letters or self.network.mode is not Mode.NOTHING:
            return
        letter, flat = letters[which % len(letters)]
        entry = flat[flat.index(b"id") + 1]
        keys = (self.stream, dead, retries_key(self.stream, group), crashes_key(self.stream, group), copies)
        if self.network.do("EVAL", REPLAY.text, len(keys), *keys, group, letter, entry) == b"replayed":
            before = self.ghosts.of[group, entry]
            place = copies, group, written(self.server.streams[copies.encode()].last)
            letters_max = max(before.letters_max, 1 + len(self.ghosts.letters(before)))
            ghost = Ghost((group, entry), place, before.poison, before.number, before.turn)
            ghost.torn, ghost.letters_max, ghost.undecodable = before.torn, letters_max, before.undecodable
            ghost.read_again, ghost.publishes_first = before.read_again, before.publishes_first
            self.ghosts.add(ghost)

    def move_release(self, which: int, how: int) -> None:
        """A dead letter that halts its key is dropped by hand, or all of them."""
        if self.network.mode is not Mode.NOTHING:
            return
        for group, spec in self.specs_of.items():
            dead, released = dead_key(self.stream, group), released_key(self.stream, group)
            letters = self.server.call("XRANGE", dead, "-", "+") if spec.options.on_dead == HALT else []
            for letter, flat in letters if how % 2 else letters[which : which + 1]:
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                if key := fields.get(b"halts"):
                    keys = dead, turn_key(self.stream, group, key.decode()), released
                    self.network.do("EVAL", DROP_HALTING.text, 3, *keys, letter, fields[b"id"], turn_field(key))
                    for ghost in self.ghosts.at.values():
                        ghost.letter_dropped |= ghost.key == (group, fields[b"id"])

    def move_delete(self, which: int, _: int) -> None:
        """An entry is deleted by hand."""
        held = self.server.streams.get(self.stream.encode())
        if self.network.mode is Mode.NOTHING and (entries := list(held.entries if held else ())):
            entry = written(entries[which % len(entries)])
            for group in self.groups:
                ghost = self.ghosts.at[self.stream, group, entry]
                ghost.deleted = True
                if owner := self.ghosts.owner(ghost):
                    self.ghosts.blur(owner)
            self.network.do("XDEL", self.stream, entry)

    # The end

    def settle(self) -> None:
        """No more faults: all that was published must be settled, and nothing be left over. Raises BrokenRuleError."""
        self.network.mode = Mode.NOTHING
        self._disturb()
        for pool in self.pools:
            pool.frozen = pool.cut_off = False
            if pool.up:
                pool.pause(False)
        self.move_release(0, 1)
        until_s = self.clock.now_s + SETTLE_S
        while self.clock.now_s < until_s and not self._quiet():
            self.run(2.0)
            self.move_release(0, 1)
            if not any(pool.up for pool in self.pools):
                self.pools[0].start(2)
        self.ghosts.check_end()
        self.limits.check_end()

    def _quiet(self) -> bool:
        """Nothing is open, and consumers without an owner are gone."""
        names = {worker.name.encode() for worker in self.workers}
        for stream, group in self.sources:
            held = self.group(stream, group)
            if held is None and stream == self.stream:
                return False
            stale = held.consumers - names - self.waiting_consumers(group) if held is not None else ()
            if held is not None and (held.pending or self.unread(stream, group) or stale):
                return False
        if self.limits.later or self.limits.committed or (self.has_outbox and self.outbox.rows):
            return False
        if any(released_key(self.stream, group).encode() in self.server.sets for group in self.groups):
            return False  # the turns of these keys are passed on soon
        return bool(names) and all(worker.is_idle for worker in self.workers)

    def bury(self) -> None:
        """Clear away what is left of all processes."""
        self.over = True
        for process in (*self.processes, *self.graves):
            process.loop.bury()


def play(seed: int, kinds: Sequence[Kind], moves: Sequence[Move]) -> World:
    """A whole history, and its end. Raises BrokenRuleError."""
    clock, chance = Clock(), random.Random(seed)
    with in_this_world(clock, chance):
        world = Moves(clock, chance, kinds)
        try:
            for move in moves:
                world.play(move)
            world.settle()
        finally:
            world.bury()
    return world
