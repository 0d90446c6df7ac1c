"""Two pools on one Redis, in memory, and everything that can happen to them.

A history is a list of moves, each a name and two numbers: which of the things that could be moved, and how. So
Hypothesis can look for one and make it short, a seed can make thousands, and a file can keep those that broke a rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.broker.scripts import REPLAY
from supervisor.core.ids import parse_id
from supervisor.keeper.lease import LEASE_MS
from supervisor.keys import REPLAY_CONSUMER, crashes_key, dead_key, replay_key, retries_key
from supervisor.messages import Reject, Retry
from supervisor.worker.delivery import Delivery
from tests.model.consumer import Consumer
from tests.model.ghosts import BrokenRuleError, Ghost
from tests.model.pool import SLOTS
from tests.model.state import State
from tests.model.tasks import GRAVEYARD, Fault

Move = tuple[str, int, int]

#: How much time a tick may be.
TICKS_MS = (60, 500, 1_100, 4_000, LEASE_MS + 1_000)
MESSAGES_MAX = 8
#: A second of quiet is one round; two leases, a few backoffs and a few deaths for each poison message need no more.
ROUNDS_MAX = 300

#: Move -> how often a random history makes it.
WEIGHTS = {
    "publish": 6,
    "step": 60,
    "hurry": 6,
    "lose": 5,
    "end": 14,
    "kill": 3,
    "drain": 2,
    "overrun": 1,
    "scale": 2,
    "spawn": 8,
    "kill_arbiter": 1,
    "stop": 1,
    "start": 3,
    "freeze": 1,
    "cut_off": 1,
    "recover": 3,
    "kill_keeper": 1,
    "ghost_read": 2,
    "tick": 8,
    "replay": 2,
    "delete": 1,
}


class World(State):
    """The moves; one that is not possible now is none."""

    def play(self, move: Move) -> None:
        """Make a move; one that is not possible now is none. Raises BrokenRuleError."""
        name, which, how = move
        before = self.server.calls, self.ghosts.events
        getattr(self, f"move_{name}")(which, how)
        self.go_on()
        if before != (self.server.calls, self.ghosts.events):
            self.ghosts.check()

    def move_publish(self, _: int, how: int) -> None:
        if self.published < MESSAGES_MAX:
            self.published += 1
            entry = self.server.call("XADD", self.stream, "*", "n", self.published)
            for group in self.groups:
                self.ghosts.of[group, entry] = Ghost(parse_id(entry), poison=how % 4 == 0)

    def move_step(self, which: int, _: int) -> None:
        if tasks := [(pool, task) for pool in self.pools for task in pool.tasks if task.travels]:
            self.step(*tasks[which % len(tasks)])

    def move_hurry(self, which: int, how: int) -> None:
        """One pool gets much done while the other stands still."""
        pool = self.pools[which % 2]
        for at in range(how % 24):
            if not pool.up or pool.frozen:
                return
            if pool.due:
                pool.spawn(min(pool.due))
            elif tasks := [task for task in pool.tasks if task.travels]:
                self.step(pool, tasks[at % len(tasks)])
            self.go_on()

    def move_lose(self, which: int, how: int) -> None:
        """A connection is lost in the middle of a round trip."""
        if tasks := [(pool, task) for pool in self.pools for task in pool.tasks if task.travels]:
            self.step(*tasks[which % len(tasks)], list(Fault)[how % len(Fault)])

    def move_end(self, which: int, how: int) -> None:
        """A handler ends, in one of the ways that it can."""
        running = [
            (consumer, delivery)
            for pool in self.pools
            if not pool.frozen
            for worker in pool.living
            for consumer in worker.consumers
            for delivery in consumer.running
        ]
        if running:
            self._end(*running[which % len(running)], how)

    def _end(self, consumer: Consumer, delivery: Delivery, how: int) -> None:
        worker, key = consumer.worker, (consumer.group, delivery.id)
        if self.ghosts.of[key].poison:
            self.ghosts.died(worker, by=key)
            worker.pool.gone(worker, crashed=True)
            return
        ghost = self.ghosts.ended(worker, *key)
        error = (None, None, ValueError("x"), Retry(after_s=0.5), Reject("no"))[how % 5]
        if error is None:
            ghost.done.append(worker)
            consumer.done(delivery)
        else:
            attempts = delivery.failed_before + 1
            consumer.failed(delivery, error)
            if consumer.waiting and consumer.waiting[-1][1] is delivery:
                ghost.failures[consumer.waiting[-1][0]] = attempts

    def move_kill(self, which: int, _: int) -> None:
        """SIGKILL from outside."""
        if workers := self.workers:
            worker = workers[which % len(workers)]
            self.ghosts.died(worker)
            if worker.accounting:
                self.ghosts.forgive()
            worker.pool.gone(worker, crashed=True)

    def move_drain(self, which: int, _: int) -> None:
        """A worker is replaced."""
        if workers := [worker for worker in self.workers if not worker.stopping and not worker.pool.frozen]:
            worker = workers[which % len(workers)]
            worker.pool.drain(worker)

    def move_overrun(self, which: int, _: int) -> None:
        """A worker that drains for too long is ended."""
        if workers := [worker for worker in self.workers if worker.stopping and not worker.pool.frozen]:
            worker = workers[which % len(workers)]
            self.ghosts.died(worker)
            worker.pool.gone(worker, crashed=False)

    def move_scale(self, which: int, how: int) -> None:
        pool = self.pools[which % 2]
        if pool.up and not pool.frozen and not pool.stopping and pool.keeper is not None:
            pool.scale(1 + how % SLOTS)

    def move_spawn(self, which: int, _: int) -> None:
        if due := [(pool, slot) for pool in self.pools if pool.up and not pool.frozen for slot in sorted(pool.due)]:
            pool, slot = due[which % len(due)]
            pool.spawn(slot)

    def move_kill_arbiter(self, which: int, _: int) -> None:
        """SIGKILL of the arbiter, or the end of its host."""
        pool = self.pools[which % 2]
        if pool.up:
            self.ghosts.died_with_their_board(pool)
            self.ghosts.forgive()
            pool.die()

    def move_stop(self, which: int, _: int) -> None:
        pool = self.pools[which % 2]
        if pool.up and not pool.frozen and not pool.stopping and pool.keeper is not None:
            pool.stop()

    def move_start(self, which: int, how: int) -> None:
        pool = self.pools[which % 2]
        if not pool.up:
            pool.start(1 + how % SLOTS)

    def move_freeze(self, which: int, _: int) -> None:
        self.pools[which % 2].frozen = self.pools[which % 2].up

    def move_cut_off(self, which: int, _: int) -> None:
        self.pools[which % 2].cut_off = self.pools[which % 2].up

    def move_recover(self, which: int, _: int) -> None:
        """From either."""
        pool = self.pools[which % 2]
        pool.frozen = pool.cut_off = False

    def move_kill_keeper(self, which: int, _: int) -> None:
        pool = self.pools[which % 2]
        if pool.up and not pool.frozen and pool.keeper is not None and not pool.stopping:
            pool.start_keeper()

    def move_ghost_read(self, which: int, how: int) -> None:
        """The server serves the blocked read of a connection that is gone."""
        consumers = [
            consumer
            for worker in self.workers
            for consumer in worker.consumers
            if consumer.ghost_until_ms > self.now_ms and self.unread(self.stream, consumer.group)
        ]
        if consumers:
            consumer = consumers[which % len(consumers)]
            consumer.ghost_until_ms = 0
            command = ("XREADGROUP", "GROUP", consumer.group, consumer.worker.name, "COUNT", 1 + how % 2)
            self.server.call(*command, "STREAMS", self.stream, ">")

    def move_tick(self, _: int, how: int) -> None:
        self.server.now_ms += TICKS_MS[how % len(TICKS_MS)]
        for pool in self.pools:
            pool.tick(self.now_ms)

    def move_replay(self, which: int, how: int) -> None:
        group = self.groups[how % len(self.groups)]
        dead = dead_key(self.stream, group)
        if letters := self.server.call("XRANGE", dead, "-", "+"):
            letter, flat = letters[which % len(letters)]
            entry = flat[flat.index(b"id") + 1]
            if not self.server.call("XRANGE", self.stream, entry, entry):
                return  # it would come as a copy, in a stream of its own; that is none of this model's business
            if any(entry in item[2] for worker in self.workers for item in worker.settler.unconfirmed):
                return  # its letter was written and may be written again: that would bury it untried
            own = (dead, retries_key(self.stream, group), crashes_key(self.stream, group))
            keys = (self.stream, *own, replay_key(self.stream, group))
            if (
                self.server.call("EVAL", REPLAY.text, len(keys), *keys, group, letter, entry, REPLAY_CONSUMER)
                == b"replayed"
            ):
                before = self.ghosts.of[group, entry]
                self.ghosts.of[group, entry] = Ghost(before.id, before.poison, runners=before.runners, torn=before.torn)

    def move_delete(self, which: int, _: int) -> None:
        """An entry is deleted by hand."""
        if entries := list(self.server.streams[self.stream.encode()].entries):
            entry = b"%d-%d" % entries[which % len(entries)]
            for group in self.groups:
                self.ghosts.of[group, entry].deleted = True
                if owner := self.ghosts.owner(group, entry):
                    self.ghosts.blur(owner)
            self.server.call("XDEL", self.stream, entry)

    # The end

    def settle(self) -> None:
        """No more faults: all that was published must be settled, and nothing be left over. Raises BrokenRuleError."""
        for pool in self.pools:
            pool.frozen = pool.cut_off = False
        self._run_until_idle()
        if not any(pool.up for pool in self.pools):
            self.play(("start", 0, 1))
        for _ in range(ROUNDS_MAX):
            self._run_until_idle()
            if self._quiet():
                break
            self.play(("tick", 0, 2))
        self.ghosts.check_end()

    def _run_until_idle(self) -> None:
        for _ in range(2_000):
            if any(pool.due for pool in self.pools if pool.up):
                self.play(("spawn", 0, 0))
            elif any(pool.tasks for pool in self.pools):
                self.play(("step", 0, 0))
            elif any(consumer.running for worker in self.workers for consumer in worker.consumers):
                self.play(("end", 0, 0))
            else:
                return
        raise BrokenRuleError("it never comes to rest")

    def _quiet(self) -> bool:
        """Nothing is open, and consumers without an owner are gone."""
        names = {worker.name.encode() for worker in self.workers}
        for group in self.groups:
            held = self.server.streams[self.stream.encode()].groups[group.encode()]
            if held.pending or self.unread(self.stream, group) or held.consumers - names:
                return False
        return all(worker.settler.idle for worker in self.workers)


def play(moves: Sequence[Move], groups: int = 1) -> World:
    """A whole history, and its end. Raises BrokenRuleError."""
    world = World(groups)
    try:
        with world.time():
            for move in moves:
                world.play(move)
            world.settle()
    finally:
        GRAVEYARD.clear()
    return world
