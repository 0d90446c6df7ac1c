"""What must hold over all workers for turns, for messages that are published later, and for what handlers return."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from supervisor.core.ids import parse_id
from supervisor.core.options import HALT
from supervisor.keys import group_turn_key, turns_key
from tests.model.ghosts import BrokenRuleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.model.ghosts import Ghost, Key
    from tests.model.world import World

#: The stream that handlers publish to.
OUT = "out"
#: Each third message has something published.
_EMITS_EVERY = 3


def emits(number: int) -> bool:
    """Whether the handler of the message with this number returns an `Emit`, if it returns one at all."""
    return number % _EMITS_EVERY == 0


class Limits:
    """What is published and started, as the rules see it."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: Numbers of messages for later -> when they are due, until they are in the stream or cancelled.
        self.later: dict[int, int] = {}
        #: Numbers of messages in the outbox that are not in the stream yet, in order of commit.
        self.committed: list[int] = []
        self._in_stream: set[int] = set()
        self._emitted: Counter[Key] = Counter()

    def published(self, number: int) -> None:
        """An entry is in the stream. Raises BrokenRuleError."""
        self._forbid(number in self._in_stream, f"message {number} was published twice")
        self._in_stream.add(number)
        if number in self.committed:
            self._forbid(number != self.committed.pop(0), f"message {number} of the outbox was published too early")
        due_ms = self.later.pop(number, 0)
        self._forbid(self._world.clock.now_ms < due_ms, f"message {number} was published before its time")

    def emitted(self, fields: Mapping[bytes, bytes]) -> None:
        """An entry is in the stream that handlers publish to. Raises BrokenRuleError."""
        key = fields[b"group"].decode(), fields[b"of"]
        self._emitted[key] += 1
        ghost = self._world.ghosts.of[key]
        # A batch publishes once for all of its messages, and another time it may be another batch.
        may_repeat = self._world.specs_of[key[0]].batch and (ghost.torn or ghost.publishes_first)
        excused = ghost.read_again or may_repeat
        self._forbid(self._emitted[key] > 1 and not excused, f"what {key!r} returns was published twice")

    def check_start(self, ghost: Ghost) -> None:
        """Raises BrokenRuleError for a handler that is called too early."""
        options = self._world.specs_of[ghost.key[0]].options
        if ghost.may_run_twice or not options.has_turns:
            return
        others = [
            other
            for other in self._world.ghosts.at.values()
            if other.key[0] == ghost.key[0] and other is not ghost and not other.may_run_twice
        ]
        limit, running = options.group_concurrency, sum(bool(other.runners) for other in others)
        self._forbid(0 < limit <= running, f"{ghost.place!r} runs beside {running} others of its group")
        if options.key and ghost.turn is not None:
            self._check_order(ghost, [other for other in others if other.turn == ghost.turn], options.on_dead == HALT)

    def _check_order(self, ghost: Ghost, others: Iterable[Ghost], halts: bool) -> None:
        stream = self._world.stream
        for other in others:
            which = f"{ghost.place!r} starts, and {other.place!r} of its key"
            self._forbid(other.runners, f"{which} runs")
            if parse_id(other.key[1]) > parse_id(ghost.key[1]):
                continue
            is_first = not ghost.begun and ghost.place[0] == stream
            comes_before = is_first and (other.place[0] == stream or halts)
            self._forbid(comes_before and self._world.is_open(other.place), f"{which} comes before it")
            # The letter of a copy stops nothing while its message, which was read again, is to run.
            stops = halts and self._world.ghosts.letters(other, halting=other.read_again)
            self._forbid(stops, f"{which} is a dead letter, which halts it")

    def check_end(self) -> None:
        """When all is quiet. Raises BrokenRuleError."""
        self._forbid(self.later, f"messages for later are still there: {self.later}")
        self._forbid(self.committed, f"messages of the outbox were never published: {self.committed}")
        for group, spec in self._world.specs_of.items():
            if spec.options.has_turns:
                self._check_rows(group)
        for key, ghost in self._world.ghosts.of.items():
            spec = self._world.specs_of[key[0]]
            given_up = ghost.letter_dropped or self._world.ghosts.letters(ghost)
            gone = ghost.deleted or ghost.dropped or ghost.torn or given_up
            wanted = self._world.handlers.returns(key[0]) and emits(ghost.number) and not ghost.failed_in_batch
            missed = wanted and not gone and not self._emitted[key]
            self._forbid(missed, f"{spec.name}: what {key!r} returns was never published")

    def _check_rows(self, group: str) -> None:
        """Nothing is left of a turn but what other programs and torn messages leave."""
        stream, server = self._world.stream, self._world.server
        turns = server.hashes.get(turns_key(stream, group).encode(), {})
        left: list[bytes] = [name for field, name in turns.items() if field.startswith(b":") and name != b"+"]
        for key, members in server.sorted_sets.items():
            if key.startswith(group_turn_key(stream, group).encode()):
                left += [re.sub(rb"-[a-z]", b"-", member, count=1) for member in members]
        for name in left:
            ghost = self._world.ghosts.at[stream, group, name.partition(b"@")[0]]
            excused = ghost.may_run_twice or ghost.dropped or ghost.acked_late
            self._forbid(not excused, f"the turn of {name!r} is never given back")

    def _forbid(self, broken: object, what: str) -> None:
        if broken:
            self._world.broken = BrokenRuleError(what)
            raise self._world.broken
