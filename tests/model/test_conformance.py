"""The model and real servers do the same: the same commands and scripts, the same replies, the same state after each.

Not compared, since a real server's clock runs by itself: idle times. What depends on them is asked for with idle times
that were set an hour back (XCLAIM IDLE), so that no test is slow enough to make a difference. Not modelled at all: the
lag, which servers count differently, and wrongly (redis#13338), and which the supervisor counts for itself.
"""

from collections.abc import Coroutine, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.exceptions import ResponseError

from supervisor.broker import scripts
from supervisor.broker.turns import Place, Turns
from supervisor.keys import (
    crashes_key,
    dead_key,
    group_turn_key,
    host_key,
    later_key,
    origins_key,
    replay_key,
    retries_key,
    turn_field,
    turn_key,
    turns_key,
)
from tests.model.commands import Argument
from tests.model.group import written
from tests.model.real_server import STREAM, Real, comparable, said, without_idle
from tests.model.server import Server
from tests.support.servers import AnyServer

GROUPS, CONSUMERS = ("g", "h"), ("a:0", "a:1", "b:0")
HOUR_MS = 3_600_000
groups = st.sampled_from(GROUPS)
consumers = st.sampled_from(CONSUMERS)
counts = st.integers(1, 3)
#: Numbers of messages; some were never published.
numbers = st.integers(0, 12)


@pytest.fixture
def real(every_server: AnyServer) -> Iterator[Real]:
    found = Real(every_server)
    yield found
    found.close()


class Conformance(RuleBasedStateMachine):
    """Sends every command to both."""

    real: Real

    def __init__(self) -> None:
        super().__init__()
        self.real.call("FLUSHALL")
        self.model = Server(eager=self.real.eager)
        #: Late enough that a time some hours ago is a positive number there too.
        self.model.now_ms = 100 * HOUR_MS
        self.published = 0
        #: The ids of dead letters are the servers' own: (model's, real one's, message).
        self.letters: list[tuple[bytes, bytes, bytes]] = []

    def both(self, *command: Argument) -> Any:
        expected, found = said(self.model, command), said(self.real, command)
        assert expected == found, f"{command}: the model says {expected!r}, the server {found!r}"
        return found

    def script(self, script: scripts.Script, keys: tuple[str, ...], *arguments: Argument) -> Any:
        return self.both("EVAL", script.text, len(keys), *keys, *arguments)

    @staticmethod
    def id(number: int) -> bytes:
        return written((1000 + number // 3, number % 3 + 1))

    @initialize(start=st.sampled_from(["0", "$"]))
    def begin(self, start: str) -> None:
        self.both("XGROUP", "CREATE", STREAM, GROUPS[0], start, "MKSTREAM")

    @rule(group=groups, start=st.sampled_from(["0", "$", "1001-1"]))
    def create_group(self, group: str, start: str) -> None:
        self.both("XGROUP", "CREATE", STREAM, group, start, "MKSTREAM")

    @rule(group=groups, sure=st.integers(0, 3))
    def destroy_group(self, group: str, sure: int) -> None:
        if sure == 0:  # rarely: it ends much of what there was to compare
            self.both("XGROUP", "DESTROY", STREAM, group)

    @rule(many=counts)
    def publish(self, many: int) -> None:
        for _ in range(many):
            self.both("XADD", STREAM, self.id(self.published), "n", self.published)
            self.published += 1

    @rule()
    def publish_an_old_id(self) -> None:
        if self.published:
            self.both("XADD", STREAM, self.id(self.published - 1), "n", "again")

    @rule(ids=st.lists(numbers, min_size=1, max_size=3))
    def delete(self, ids: list[int]) -> None:
        self.both("XDEL", STREAM, *map(self.id, ids))

    @rule(number=numbers)
    def trim(self, number: int) -> None:
        self.both("XTRIM", STREAM, "MINID", "=", self.id(number))

    @rule(group=groups, consumer=consumers, count=counts)
    def read_new(self, group: str, consumer: str, count: int) -> None:
        self.both("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", STREAM, ">")

    @rule(group=groups, consumer=consumers, count=counts)
    def read_both(self, group: str, consumer: str, count: int) -> None:
        """New entries of the stream and of the group's replay stream, as a worker reads them."""
        streams = (STREAM, replay_key(STREAM, group))
        command = ("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", *streams, ">", ">")
        expected, found = (said(by, command) for by in (self.model, self.real))
        assert contents(expected) == contents(found), command

    @rule(group=groups, consumer=consumers, count=counts, after=st.none() | numbers)
    def read_own(self, group: str, consumer: str, count: int, after: int | None) -> None:
        start = b"0" if after is None else self.id(after)
        self.both("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", STREAM, start)

    @rule(group=groups, ids=st.lists(numbers, min_size=1, max_size=3))
    def ack(self, group: str, ids: list[int]) -> None:
        self.both("XACK", STREAM, group, *map(self.id, ids))

    @rule(
        group=groups,
        consumer=consumers,
        ids=st.lists(numbers, min_size=1, max_size=3, unique=True),
        min_idle_ms=st.sampled_from([0, HOUR_MS // 2]),
        how=st.sets(st.sampled_from(["JUSTID", "FORCE", "IDLE"])),
    )
    def claim(self, group: str, consumer: str, ids: list[int], min_idle_ms: int, how: set[str]) -> None:
        words: list[Argument] = []
        for word in sorted(how):
            words += [word, HOUR_MS] if word == "IDLE" else [word]
        self.both("XCLAIM", STREAM, group, consumer, min_idle_ms, *map(self.id, ids), *words)

    @rule(group=groups, consumer=consumers)
    def create_consumer(self, group: str, consumer: str) -> None:
        self.both("XGROUP", "CREATECONSUMER", STREAM, group, consumer)

    @rule(group=groups, consumer=consumers)
    def delete_consumer(self, group: str, consumer: str) -> None:
        self.both("XGROUP", "DELCONSUMER", STREAM, group, consumer)

    @rule(
        group=groups,
        consumer=consumers,
        heir=consumers,
        count=counts,
        idle_ms=st.sampled_from([0, HOUR_MS // 2, 2 * HOUR_MS]),
        gone_ms=st.sampled_from([None, HOUR_MS // 2, 2 * HOUR_MS, -HOUR_MS]),
    )
    def claim_pending(
        self, group: str, consumer: str, heir: str, count: int, idle_ms: int, gone_ms: int | None
    ) -> None:
        """The owner is gone since half an hour ago, or two, or will be in one; what it holds is an hour old."""
        if (held := said(self.model, ("XPENDING", STREAM, group, "-", "+", 100, consumer))) and held != "NOGROUP":
            self.both("XCLAIM", STREAM, group, consumer, 0, *(row[0] for row in held), "IDLE", HOUR_MS, "JUSTID")
        answers = []
        for by in (self.model, self.real):
            now_ms = by.call("EVAL", scripts.NOW.text, 1, STREAM)
            words = (group, consumer, heir, count, idle_ms, 0 if gone_ms is None else now_ms - gone_ms)
            answers.append(said(by, ("EVAL", scripts.CLAIM_PENDING.text, 1, STREAM, *words)))
        assert answers[0] == answers[1]

    @rule(group=groups, consumer=consumers)
    def delete_consumer_if_empty(self, group: str, consumer: str) -> None:
        self.script(scripts.DELETE_CONSUMER, (STREAM,), group, consumer)

    @rule(group=groups, ids=st.lists(numbers, min_size=1, max_size=2))
    def ack_retried(self, group: str, ids: list[int]) -> None:
        keys = (STREAM, retries_key(STREAM, group), crashes_key(STREAM, group))
        self.script(scripts.ACK_RETRIED, keys, group, *map(self.id, ids))

    @rule(group=groups, number=numbers, attempts=counts)
    def retry_later(self, group: str, number: int, attempts: int) -> None:
        keys = (STREAM, retries_key(STREAM, group))
        self.script(scripts.RECORD_RETRY, keys, group, self.id(number), f"{attempts}:1000")

    @rule(group=groups, number=numbers)
    def crash(self, group: str, number: int) -> None:
        self.both("HINCRBY", crashes_key(STREAM, group), self.id(number), 1)

    @rule(group=groups, number=numbers)
    def dead_letter(self, group: str, number: int) -> None:
        keys = [STREAM, retries_key(STREAM, group), crashes_key(STREAM, group), dead_key(STREAM, group)]
        letter = ["id", self.id(number), "reason", "x", "field:n", "1"]
        command = ("EVAL", scripts.DEAD_LETTER.text, len(keys), *keys, group, self.id(number), *letter)
        expected, found = said(self.model, command), said(self.real, command)
        if isinstance(expected, bytes) and isinstance(found, bytes):
            self.letters.append((expected, found, self.id(number)))
        else:
            assert expected == found

    @precondition(lambda self: self.letters)
    @rule(group=groups, at=st.integers(0, 5), again=st.booleans())
    def replay(self, group: str, at: int, again: bool) -> None:
        ids = self.letters[at % len(self.letters)]
        own = (dead_key(STREAM, group), retries_key(STREAM, group), crashes_key(STREAM, group))
        keys = (STREAM, *own, replay_key(STREAM, group))
        head = ("EVAL", scripts.REPLAY.text, len(keys), *keys, group)
        answers = [
            said(by, (*head, letter, ids[2])) for by, letter in zip((self.model, self.real), ids[:2], strict=True)
        ]
        assert answers[0] == answers[1]

    def turns(self, group: str, consumer: str, per_group: int) -> Turns:
        """The turns of a group, whose scripts are run by both."""
        return Turns(_Both(self), STREAM, group, consumer, per_key=1, per_group=per_group)  # type: ignore[arg-type]

    def places(self, ids: list[bytes]) -> list[Place]:
        """Of messages whose number tells which of two keys they have."""
        return [(entry, turn_field(b"ab"[entry[-1] % 2 :][:1])) for entry in ids]

    @rule(group=groups, consumer=consumers, count=counts, per_group=st.integers(0, 2), own=st.booleans())
    def admit(self, group: str, consumer: str, count: int, per_group: int, own: bool) -> None:
        start = "0" if own else ">"
        reply = self.both("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", STREAM, start)
        ids = [row[0] for row in reply[0][1] if row[1]] if isinstance(reply, list) and reply else []
        turns, modes = self.turns(group, consumer, per_group), ("own" if own else "new", "others")
        with suppress(ResponseError):  # the group does not exist
            finished(turns.begin("k"))
            for mode in modes if ids else modes[1:]:
                finished(turns.admit(mode, self.places(ids), ids[-1] if ids else b""))  # type: ignore[arg-type]

    @rule(group=groups, consumer=consumers, per_group=st.integers(0, 2), ids=st.lists(numbers, min_size=1, max_size=2))
    def settle_turns(self, group: str, consumer: str, per_group: int, ids: list[int]) -> None:
        places = self.places([self.id(number) for number in sorted(set(ids))])
        keys = retries_key(STREAM, group), crashes_key(STREAM, group)
        script, arguments = self.turns(group, consumer, per_group).settle(places, *keys, replays=False)
        self.both("EVAL", script.text, *arguments)

    @rule(group=groups, consumer=consumers, per_group=st.integers(0, 2), keys=st.sets(st.sampled_from([b"a", b"b"])))
    def check_turns(self, group: str, consumer: str, per_group: int, keys: set[bytes]) -> None:
        with suppress(ResponseError):
            finished(self.turns(group, consumer, per_group).check([turn_field(key) for key in sorted(keys)]))

    @rule(members=st.lists(st.sampled_from("xyz"), min_size=1, max_size=3, unique=True), score=st.integers(-2, 3))
    def add_for_later(self, members: list[str], score: int) -> None:
        self.both(
            "ZADD",
            later_key(STREAM),
            *(word for number, member in enumerate(members) for word in (score + number, member)),
        )

    @rule(
        low=st.sampled_from(["-inf", "0", "(1", "2.5"]),
        high=st.sampled_from(["+inf", "(2", "1e0"]),
        member=st.sampled_from("xyz"),
    )
    def look_at_later(self, low: str, high: str, member: str) -> None:
        key = later_key(STREAM)
        self.both("ZRANGEBYSCORE", key, low, high, "WITHSCORES", "LIMIT", 0, 2)
        self.both("ZCOUNT", key, low, high)
        self.both("ZRANGE", key, -2, -1)
        self.both("ZRANK", key, member)
        self.both("ZREM", key, member)

    @rule(member=st.sampled_from("xyz"), due=st.booleans())
    def move_later(self, member: str, due: bool) -> None:
        keys = (later_key(STREAM), "out", origins_key("out"))
        self.both("ZADD", keys[0], "XX", 1 if due else 1e15, member)
        command = ("EVAL", scripts.MOVE_LATER.text, 3, *keys, 0, member, "id", 2, "n", member)
        assert [len(said(by, command)) for by in (self.model, self.real)] in ([0, 0], [1, 1])

    @rule(token=st.sampled_from(["x", "y"]), drop=st.booleans())
    def lease(self, token: str, drop: bool) -> None:
        if drop:
            self.script(scripts.DROP_LEASE, (host_key("a"),), token)
        else:
            self.script(scripts.TAKE_LEASE, (host_key("a"),), token, HOUR_MS)
        self.both("EXISTS", host_key("a"))

    @rule(group=groups, consumer=consumers, idle_ms=st.sampled_from([0, HOUR_MS // 2]), count=counts)
    def look_at_pending(self, group: str, consumer: str, idle_ms: int, count: int) -> None:
        command = ("XPENDING", STREAM, group, "IDLE", idle_ms, "-", "+", count, consumer)
        expected, found = (said(by, command) for by in (self.model, self.real))
        assert without_idle(expected) == without_idle(found)

    @invariant()
    def the_same_state(self) -> None:
        commands: list[tuple[Argument, ...]] = [("XINFO", "GROUPS", STREAM), ("XRANGE", STREAM, "-", "+")]
        for group in GROUPS:
            commands += [("XPENDING", STREAM, group), ("XPENDING", STREAM, group, "-", "+", 100)]
            commands += [("XINFO", "CONSUMERS", STREAM, group)]
            commands += [("HGETALL", key(STREAM, group)) for key in (retries_key, crashes_key, turns_key)]
            rows = (*(turn_key(STREAM, group, key) for key in "ab"), group_turn_key(STREAM, group))
            commands += [("ZRANGE", row, 0, -1, "WITHSCORES") for row in rows]
            commands += [("XRANGE", key(STREAM, group), "-", "+") for key in (dead_key, replay_key)]
            commands += [("XINFO", "GROUPS", replay_key(STREAM, group))]
        replies = self.real.call_all(commands)
        for command, found in zip(commands, replies, strict=True):
            expected = comparable(command, said(self.model, command))
            assert expected == comparable(command, found), command


class _Both:
    """Of `CommandConnection`, what `Turns` uses."""

    def __init__(self, test: Conformance) -> None:
        self._test = test

    async def script(self, script: scripts.Script, keys: tuple[str, ...], *arguments: Argument) -> Any:
        reply = self._test.script(script, keys, *arguments)
        if isinstance(reply, str):
            raise ResponseError(reply)
        return reply


def finished(work: Coroutine[Any, Any, Any]) -> Any:
    """Run what waits for nothing."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waits")


def contents(reply: Any) -> Any:
    """Of an answer of XREADGROUP: the ids only of the stream whose ids the test chooses."""
    if not isinstance(reply, list):
        return reply
    return [[key, rows if key == STREAM.encode() else [row[1] for row in rows]] for key, rows in reply]


def test_the_model_does_what_a_server_does(real: Real) -> None:
    class Against(Conformance):
        pass

    Against.real = real
    run_state_machine_as_test(
        Against,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
