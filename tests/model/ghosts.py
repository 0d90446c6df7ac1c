"""What really happened to each message, which no process knows, and whether the rules allow it.

The rules are those of a total queue (every message that was published is undelivered, pending, done or dead), and those
of this product: who is charged for a crash, how often a message is tried, and that nobody works on what another has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supervisor.core.ids import parse_id
from supervisor.core.outcome import CRASHED
from supervisor.keys import crashes_key, dead_key, isolated_key, retries_key
from supervisor.shared_state import SlotField
from tests.model.group import written

if TYPE_CHECKING:
    from supervisor.messages import Message
    from tests.model.group import Id
    from tests.model.modelled_pool import Pool
    from tests.model.process import Process, Worker
    from tests.model.world import World

#: A worker hears of a pause with its next beat, and leaves within a few round trips, when nothing disturbs it.
_OBEYS_S = 3.0
_LEAVES_S = 3.0

#: A message and a copy of it, which a replay has made, are both there, and so may be letters of either.
LETTERS_OF_BOTH = 99

#: Group, and the id that the message was published with.
Key = tuple[str, bytes]
#: Stream, group and the id of the entry that stands for it now.
Place = tuple[str, str, bytes]


class BrokenRuleError(AssertionError):
    """The product did what it must not."""


@dataclass(eq=False)
class Ghost:
    """One message for one group, since it was published or put back."""

    key: Key
    place: Place
    poison: bool
    #: The number that it was published with, and its handler's key for it; None: it has none.
    number: int = 0
    turn: bytes | None = None
    #: Its handler is never called: its first delivery is its last.
    undecodable: bool = False
    #: Its handler runs and ignores its end, so that its worker has to be killed.
    hangs: bool = False
    #: The workers whose handler has returned.
    done: list[Worker] = field(default_factory=list)
    #: Done before its group was destroyed: a late ack of that may settle its second delivery.
    was_done: bool = False
    #: How many attempts failed, and of how many Redis is known to keep the number, and until when it waits.
    failed: int = 0
    kept: int = 0
    due_ms: int = 0
    #: In which worker it failed last, and the number that this has for Redis.
    failed_in: tuple[Worker, int] | None = None
    #: A process that was dead by then had its failure recorded.
    recorded_late: bool = False
    #: Who met it in its own pending list last, and when.
    scanned_by: Process | None = None
    scanned_s: float = 0.0
    #: So did its ack.
    acked_late: bool = False
    #: Whose dead letter was written last, and when.
    given_up_by: Process | None = None
    given_up_s: float = 0.0
    #: Workers that have its handler running now.
    runners: list[Worker] = field(default_factory=list)
    #: The consumer whose process died with its handler running: there, its next run is in isolation.
    suspected_by: str = ""
    #: Deaths of processes that had it, and nothing else, in hand.
    deaths_alone: int = 0
    #: How often it ended a process, and how often one may do so without being charged for it: see `forgive`.
    explosions: int = 0
    forgiven: int = 0
    #: Two may run it: it was taken from a host that was wrongly declared dead, or its group was lost.
    torn: bool = False
    #: The entry was deleted by hand; and then Redis dropped it from the pending list when it was to change hands.
    deleted: bool = False
    dropped: bool = False
    #: Letters that it may have: more than one when its group was lost after the first.
    letters_max: int = 1
    #: Its handler was called; its letter was dropped by hand.
    begun: bool = False
    letter_dropped: bool = False
    #: What its handler returns is published before it is acked, and the time limit may end that.
    publishes_first: bool = False
    #: Its group was destroyed, and it was read again.
    read_again: bool = False
    #: It was in a batch whose handler has raised, for another one.
    failed_in_batch: bool = False

    @property
    def id(self) -> Id:
        return parse_id(self.place[2])

    @property
    def may_run_twice(self) -> bool:
        """So others of its key may run beside it."""
        return self.torn or self.deleted


class Ghosts:
    """All of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.of: dict[Key, Ghost] = {}
        self.at: dict[Place, Ghost] = {}
        #: Consumers of which a message was taken away while it may have been running.
        self._blurred: set[str] = set()

    def add(self, ghost: Ghost) -> None:
        """It is published, or put back."""
        self.of[ghost.key] = self.at[ghost.place] = ghost

    # What handlers tell

    def began(self, worker: Worker, message: Message) -> None:
        ghost = self.of_message(message)
        name, entry, torn = worker.name, ghost.place, ghost.torn
        self._forbid(ghost.undecodable, f"{entry!r} runs, and can't be decoded")
        self._forbid(worker in ghost.runners and not torn, f"{entry!r} runs twice in {name}")
        again = worker in ghost.done and not ghost.publishes_first
        self._forbid(again and not torn, f"{entry!r} runs again in {name}, which has done it")
        self._forbid(ghost.runners and not torn, f"{entry!r} runs in two workers at once")
        self._forbid(message.failures >= self._world.options.max_deliveries, f"{entry!r} is tried too often")
        self._forbid(message.failures > ghost.failed and not torn, f"{entry!r}: an attempt was counted twice")
        torn = torn or ghost.recorded_late
        self._forbid(message.failures < ghost.kept and not torn, f"{entry!r}: failed attempts were forgotten")
        early = ghost.kept == message.failures and self._world.clock.now_ms < ghost.due_ms - 1
        self._forbid(early and not torn, f"{entry!r} is tried before it is due")
        buried = ghost.given_up_by and (ghost.given_up_by.alive or ghost.given_up_s < worker.began_s)
        self._forbid(buried and not torn, f"{entry!r} runs after its dead letter")
        pool = worker.pool
        paused_s = max(pool.paused_s or self._world.clock.now_s, pool.disturbed_s)
        self._forbid(self._world.clock.now_s - paused_s > _OBEYS_S, f"{entry!r} is started while the pool is paused")
        obeys = worker.words.get(SlotField.PAUSED)
        self._forbid(obeys, f"{entry!r} is started by a worker that says that it starts nothing")
        self._check_marks(worker, message, ghost)
        self._world.limits.check_start(ghost)
        ghost.begun = True
        ghost.runners.append(worker)
        ghost.suspected_by = ""
        here = [other for other in self.running_in(worker) if other.key[0] == ghost.key[0]]
        self._forbid(len(here) > self._world.options.concurrency, f"{name} runs too many at once")

    def _check_marks(self, worker: Worker, message: Message, ghost: Ghost) -> None:
        own = worker.words.consumer(*ghost.place[:2])
        assert own is not None
        self._forbid(own.started() < parse_id(message.entry), f"{ghost.place!r} runs unmarked")
        isolated = [row.isolated() for row in worker.opened_rows if row.isolated()]
        others = [other.place for other in self.running_in(worker)]
        self._forbid(isolated and (others or isolated != [ghost.id]), f"{ghost.place!r} runs beside what runs alone")
        self._forbid(
            ghost.suspected_by == worker.name and not isolated and not ghost.torn,
            f"{ghost.place!r} is a suspect and does not run alone",
        )

    def _charges(self, ghost: Ghost) -> int:
        crashes = self._world.server.hashes.get(crashes_key(*ghost.place[:2]).encode(), {})
        return int(crashes.get(ghost.place[2], 0))

    def ended(self, worker: Worker, message: Message, error: BaseException | None, *, counts: bool = True) -> None:
        """Its handler has returned, or raised; `counts`: not for a worker that leaves."""
        ghost = self.of_message(message)
        if worker in ghost.runners:
            ghost.runners.remove(worker)
        if error is None:
            ghost.done.append(worker)
            ghost.failed += ghost.publishes_first  # if its time limit ends the publishing
        elif counts:
            ghost.failed += 1
            ghost.failed_in = worker, message.failures + 1

    def of_message(self, message: Message) -> Ghost:
        return self.at[message.origin.key, message.group, message.entry]  # type: ignore[attr-defined]

    def running_in(self, worker: Worker) -> list[Ghost]:
        """Those whose handler runs there, also of a message that is dead or replayed for others."""
        return [ghost for ghost in self.at.values() if worker in ghost.runners]

    # What ends processes

    def died(self, worker: Worker, *, by: Ghost | None = None, crashed: bool = True) -> None:
        """The process is gone; `by`: the message that ended it; `crashed`: not by an arbiter that waits no longer."""
        running = self.running_in(worker)
        in_hand = {self.at[place] for place in worker.in_hand if place in self.at} | set(running)
        marked = [self.at.get(place) for place in self._isolated(worker)]
        if any(ghost.torn or ghost.deleted for ghost in in_hand):
            self.blur(worker.name)
        else:
            alone = in_hand if len(in_hand) == 1 else set()
            for ghost in alone.union(ghost for ghost in marked if ghost):
                ghost.deaths_alone += 1
        for ghost in running:
            ghost.runners.remove(worker)
            if crashed:
                ghost.suspected_by = worker.name
        if by is not None:
            by.explosions += 1

    def _isolated(self, worker: Worker) -> list[Place]:
        """What shared memory names as running alone."""
        found = []
        for stream, group in self._world.sources:
            row = worker.words.consumer(stream, group)
            if row is not None and (entry := row.isolated()):
                found.append((stream, group, written(entry)))
        return found

    def left(self, worker: Worker) -> None:
        """It has ended as requested."""
        for ghost in self.at.values():
            self._forbid(worker in ghost.runners, f"{worker.name} left with {ghost.place!r} running")
            if ghost.torn or self.owner(ghost) != worker.name:
                continue
            refused = self._world.has_refused and self._world.handlers.returns(ghost.key[0])  # it would publish, too
            done = worker in ghost.done and not ghost.publishes_first and not refused
            self._forbid(done, f"{worker.name} left without acking {ghost.place!r}")
            record = self._world.server.call("HGET", retries_key(*ghost.place[:2]), ghost.place[2])
            recorded = int(record.split(b":")[0]) if record else 0
            failed = ghost.failed_in[1] if ghost.failed_in and ghost.failed_in[0] is worker else 0
            forgotten = recorded < failed and not self._world.has_refused
            self._forbid(forgotten, f"{worker.name} left {ghost.place!r} without a record of its attempts")
        if not worker.stopping:  # a burst, which takes its time
            return
        since_s = max(worker.drained_s, worker.began_s, worker.pool.disturbed_s, worker.busy_s)
        took_s = 0 if self._world.has_refused or worker.pool.cut_off else self._world.clock.now_s - since_s
        self._forbid(took_s > _LEAVES_S, f"{worker.name} took {took_s:.1f} s to leave with nothing to do")

    def overdue(self, worker: Worker) -> None:
        """The arbiter kills it, since what it does takes too long."""
        hangs = any(ghost.hangs for ghost in self.running_in(worker))
        self._forbid(not hangs, f"{worker.name} is killed for its deadline, and no handler ignores its end")
        self.died(worker)

    def unsuspect(self, consumer: str) -> None:
        """Shared memory is gone: what this consumer had running can't be known any more.

        The last death of a suspect is then not charged, and the suspect runs beside others, so that its next death is
        not charged either: that is one more than `forgive` allows.
        """
        for ghost in self.of.values():
            if ghost.suspected_by == consumer:
                ghost.suspected_by = ""
                ghost.forgiven += ghost.poison

    def blur(self, consumer: str) -> None:
        """What ended its process may have been taken away: the successor can't know, and may think it was another."""
        self._blurred.add(consumer)
        for ghost in self.of.values():
            ghost.deaths_alone += self.owner(ghost) == consumer

    def owner(self, ghost: Ghost) -> str:
        """The consumer that has it; empty when it is not pending."""
        held = self._world.group(*ghost.place[:2])
        pending = held and held.pending.get(ghost.id)
        return pending.consumer.decode() if pending else ""

    def died_with_their_pool(self, pool: Pool) -> None:
        """Only Redis tells then what ran alone, and it hears of it a round trip before and after: that counts, too.

        So does what it is about to hear, since that is under way.
        """
        before = {key: ghost.deaths_alone for key, ghost in self.of.items()}
        for worker in pool.living:
            self.died(worker)
        for slot in pool.workers:
            self.unsuspect(f"{pool.name}:{slot}")
        self.marks_stay(pool, before)

    def marks_stay(self, pool: Pool, before: dict[Key, int] | None = None) -> None:
        """What Redis says of a pool's workers is all that the next pool knows; `before`: what was counted earlier."""
        for stream, group in self._world.sources:
            key = isolated_key(stream, group)
            noted = [self._world.server.call("HGET", key, f"{pool.name}:{slot}") for slot in pool.workers] + [
                worker.sent_marks.get(key) for worker in pool.living
            ]
            for ghost in {self.at.get((stream, group, entry)) for entry in noted if entry}:
                if ghost is not None and (before is None or ghost.deaths_alone == before.get(ghost.key, 0)):
                    ghost.deaths_alone += 1

    def forgive(self) -> None:
        """A worker's marks are lost: if they named a poison message, one more crash is needed."""
        for ghost in self.of.values():
            ghost.forgiven += ghost.poison

    # The rules

    def check(self) -> None:
        """Raises BrokenRuleError."""
        for ghost in self.of.values():
            if self._world.group(*ghost.place[:2]) is None:
                continue
            letters = self.letters(ghost)
            settled = ghost.done or ghost.was_done or letters or ghost.letter_dropped or ghost.deleted or ghost.dropped
            if not (settled or self._world.is_open(ghost.place)):
                raise BrokenRuleError(f"{ghost.place!r} is lost: neither pending, nor done, nor dead")
            self._forbid(len(letters) > ghost.letters_max, f"{ghost.place!r} has {len(letters)} letters")
            too_often = any(deliveries > self._world.options.max_deliveries for _, deliveries in letters)
            self._forbid(too_often, f"{ghost.place!r} was tried too often")
            late = [deliveries for reason, deliveries in letters if reason != CRASHED and deliveries > 1]
            self._forbid(ghost.undecodable and late, f"{ghost.place!r} can't be decoded, and was tried again")
            self._check_crashes(ghost, self._charges(ghost), letters)

    def _check_crashes(self, ghost: Ghost, crashes: int, letters: list[tuple[str, int]]) -> None:
        most = self._world.options.max_crashes
        is_own = ghost.letters_max < LETTERS_OF_BOTH
        charged = most if is_own and any(reason == CRASHED for reason, _ in letters) else crashes
        if charged > ghost.deaths_alone and self.owner(ghost) not in self._blurred and not ghost.torn:
            raise BrokenRuleError(f"{ghost.place!r} is charged {charged} crashes of {ghost.deaths_alone}")
        if ghost.explosions > most + 1 + ghost.forgiven and not ghost.torn:
            raise BrokenRuleError(f"{ghost.place!r} has ended {ghost.explosions} processes, {ghost.forgiven} forgiven")

    def check_end(self) -> None:
        """When all is quiet. Raises BrokenRuleError."""
        self.check()
        living = {worker.name.encode() for worker in self._world.workers}
        for stream, group in self._world.sources:
            held = self._world.group(stream, group)
            if held is None:
                continue
            self._forbid(held.pending, f"{dict(held.pending)} are still pending in {stream}")
            self._forbid(self._world.unread(stream, group), f"not all of {stream} was read")
            stale = held.consumers - living - self._world.waiting_consumers(group)
            self._forbid(stale, f"stale consumers: {stale}")
            ours = [ghost for ghost in self.at.values() if ghost.place[:2] == (stream, group)]
            # What a host that was wrongly declared dead says of a retry may come after another's ack, and stays.
            # So does what is recorded before a dead process's ack arrives.
            known = {ghost.place[2] for ghost in ours if ghost.dropped or ghost.torn or ghost.acked_late}
            for key in (retries_key(stream, group), crashes_key(stream, group)):
                left = set(self._world.server.call("HKEYS", key)) - known
                self._forbid(left, f"{left} are left in {key}")
            for worker in self._world.workers:
                row = worker.words.consumer(stream, group)
                marked = row is not None and (row.started() != (0, 0) or row.isolated())
                self._forbid(marked, f"{worker.name} is idle, and marked as running something")
        for ghost in self.of.values():
            given_up = ghost.letter_dropped or self.letters(ghost)
            missed = (ghost.poison or ghost.undecodable) and not ghost.deleted and not given_up
            self._forbid(missed, f"{ghost.place!r} can't be handled and is not dead")

    def check_waiting(self, worker: Worker) -> None:
        """What an idle worker has pending it does not know of; of what waits for a retry Redis has the record."""
        pool, now_s = worker.pool, self._world.clock.now_s
        if pool.frozen or worker.is_opening or not worker.is_confirmed:
            return
        for place, failures in worker.waiting:
            ghost = self.at[place]
            if self.owner(ghost) == worker.name and not ghost.torn:
                record = self._world.server.call("HGET", retries_key(*place[:2]), place[2])
                recorded = int(record.split(b":")[0]) if record else 0
                self._forbid(recorded < failures, f"{place!r} failed {failures} times, and {recorded} are recorded")
        if not worker.is_idle or worker.stopping or pool.paused_s is not None or worker.waits_for_redis:
            return
        since_s = max(pool.disturbed_s, pool.resumed_s, worker.busy_s)
        for ghost in self.at.values():
            if self.owner(ghost) != worker.name or ghost.torn or ghost.deleted:
                continue
            if self._world.specs_of[ghost.key[0]].options.rate:  # it is in no queue while its rate is asked for
                continue
            done = worker in ghost.done and not ghost.publishes_first
            had = done or (ghost.failed_in and ghost.failed_in[0] is worker)
            scanned = ghost.scanned_by is worker and now_s - max(ghost.scanned_s, since_s) > _OBEYS_S
            self._forbid(had or scanned, f"{worker.name} is idle, and has {ghost.place!r} pending")

    def letters(self, ghost: Ghost, *, halting: bool = False) -> list[tuple[str, int]]:
        """Reason and deliveries of each of its letters; `halting`: of those that say that they stop its key."""
        dead = self._world.server.streams.get(dead_key(self._world.stream, ghost.key[0]).encode())
        found = []
        for flat in dead.entries.values() if dead else ():
            letter = dict(zip(flat[::2], flat[1::2], strict=True))
            if letter[b"id"] == ghost.key[1] and (b"halts" in letter or not halting):
                found.append((letter[b"reason"].decode(), int(letter[b"deliveries"])))
        return found

    def _forbid(self, broken: object, what: str) -> None:
        if broken:
            self._world.broken = BrokenRuleError(what)  # where the product takes it for a handler's error
            raise self._world.broken
