"""The pure rules of delivery, over many inputs."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from typing_extensions import TypedDict

from supervisor import BatchError, Message, Reject, Retry, handler
from supervisor.core.backoff import JITTER, backoff_s
from supervisor.core.ids import parse_id
from supervisor.core.options import Options
from supervisor.core.outcome import Dead, Later, outcome_of
from supervisor.core.pace import SLOW_SHARE, Pace
from supervisor.errors import HandlerError
from supervisor.handling.decode import make_decoder, split_batch
from supervisor.handling.loader import specs_of
from supervisor.keys import dead_key, hash_tag
from supervisor.messages import DecodeError
from supervisor.settings.model import Settings
from supervisor.worker.adopted import classify

OPTIONS = Options(
    start="0",
    batch_size=100,
    concurrency=100,
    timeout_s=60,
    max_deliveries=5,
    retry_base_s=1,
    retry_max_s=300,
    max_crashes=3,
    hold_ms=100,
    block_ms=5000,
    max_waiting=1000,
    circuit_breaker=True,
    run_in="thread",
    max_tasks=0,
)


@given(st.integers(1, 10_000), st.floats(0.001, 100), st.floats(0.001, 1000), st.floats(0, 0.999))
def test_backoff_doubles_up_to_its_limit(tries: int, base_s: float, max_s: float, chance: float) -> None:
    plain = min(max_s, base_s * 2.0 ** min(tries - 1, 60))
    assert plain * (1 - JITTER) <= backoff_s(tries, base_s, max_s, lambda: chance) <= plain * (1 + JITTER)


@given(st.integers(0, 100), st.integers(1, 20))
def test_a_message_is_given_up_after_exactly_max_deliveries(failed_before: int, max_deliveries: int) -> None:
    outcome = outcome_of(ValueError("x"), failed_before, replace(OPTIONS, max_deliveries=max_deliveries), lambda: 0.5)
    assert isinstance(outcome, Dead) == (failed_before + 1 >= max_deliveries)
    assert outcome.attempts == failed_before + 1


def test_retry_and_reject_choose() -> None:
    assert outcome_of(Retry(after_s=30), 0, OPTIONS, lambda: 0.5) == Later(30, 1)
    assert outcome_of(Retry(), 1, OPTIONS, lambda: 0.5) == Later(2, 2)
    assert outcome_of(Reject("no"), 0, OPTIONS, lambda: 0.5) == Dead("no", 1)
    assert isinstance(outcome_of(Retry(after_s=1), 4, OPTIONS, lambda: 0.5), Dead)


def test_a_letter_s_reason_tells_how_often_it_was_tried() -> None:
    def reason(max_deliveries: int) -> str:
        outcome = outcome_of(
            ValueError("x"), max_deliveries - 1, replace(OPTIONS, max_deliveries=max_deliveries), lambda: 0.5
        )
        assert isinstance(outcome, Dead)
        return outcome.reason

    assert reason(1) == "failed once, with ValueError: x"
    assert reason(3) == "failed 3 times, the last time with ValueError: x"


Seen = st.tuples(st.integers(1, 200), st.floats(0, 10), st.floats(0, 1))


@given(st.lists(Seen, max_size=50))
def test_pace_never_holds_more_than_the_present_pace_allows(seen: list[tuple[int, float, float]]) -> None:
    pace = Pace(hold_s=0.1, batch_size=100)
    for ran, busy_s, share in seen:
        slowest_s = busy_s * share
        pace.observe(ran, busy_s, slowest_s)
        assert 1 <= pace.count <= 100
        slow = slowest_s > pace.hold_s * SLOW_SHARE
        if slow or pace.slow_s:
            assert not pace.read_ahead
            assert not slow or pace.slow_s >= slowest_s
            assert pace.count == 1 or pace.count * pace.slow_s <= 0.1 + 1e-9
        else:
            assert pace.count == 1 or 2 * pace.count * pace.per_message_s <= 0.1 + 1e-9
        assert pace.reads_max == 1 or (pace.read_ahead and 3 * pace.count * pace.per_message_s <= 0.1 + 1e-9)


def test_pace_grows_while_quick_and_falls_at_once() -> None:
    pace = Pace(hold_s=0.1, batch_size=100)
    for _ in range(10):
        pace.observe(pace.count, pace.count * 2e-6, 5e-6)
    assert (pace.count, pace.read_ahead, pace.reads_max) == (100, True, 2)
    pace.observe(100, 0.05, 0.05)
    assert (pace.count, pace.read_ahead, pace.reads_max) == (2, False, 1)
    pace.observe(2, 4e-6, 2e-6)
    assert (pace.count, pace.read_ahead) == (2, False), "where one was slow, the next may be near"
    for _ in range(60):
        pace.observe(pace.count, pace.count * 2e-6, 2e-6)
    assert (pace.count, pace.read_ahead) == (100, True)
    pace.count = 100
    pace.came_short(1)
    assert pace.count == 2


def test_pace_asks_for_less_after_a_lost_reply_and_slowly_for_more() -> None:
    pace = Pace(hold_s=0.1, batch_size=100)

    def run() -> None:
        pace.observe(pace.count, pace.count * 2e-6, 2e-6)

    for _ in range(10):
        run()
    for most in (50, 25, 12, 6, 3, 1, 1):
        pace.lost()
        assert pace.count == most
    run()
    assert pace.count == 2
    pace.lost()
    for _ in range(200):
        before = pace.count
        run()
        assert pace.count <= before + 1
    assert pace.count == 100


Ids = st.tuples(st.integers(1, 2**48), st.integers(0, 2**32))


@given(st.sets(Ids, max_size=30), Ids, st.data())
def test_what_waits_for_a_retry_is_never_a_suspect(
    ids: set[tuple[int, int]], started: tuple[int, int], data: st.DataObject
) -> None:
    found = Message.from_reply(None, [(f"{ms}-{seq}".encode(), ()) for ms, seq in sorted(ids)])  # type: ignore[arg-type]
    records = [data.draw(st.sampled_from([None, b"2:1000:1000"])) for _ in found]
    adopted = classify(found, records, started, 500)
    assert len(adopted.plain) + len(adopted.suspects) + len(adopted.waiting) == len(found)
    assert all(parse_id(message.entry) <= started for message in adopted.suspects)
    assert all(parse_id(message.entry) > started for message in adopted.plain)
    assert [(d.failures, s) for d, s in adopted.waiting] == [(2, 0.5)] * records.count(b"2:1000:1000")


@given(st.integers(0, 2**48), st.integers(0, 10**9), st.integers(-(10**10), 10**10))
def test_a_retry_never_waits_longer_than_it_was_to(failed_ms: int, delay_ms: int, jump_ms: int) -> None:
    # The clock may have been put back since, by an administrator or because it is another host's.
    record = f"3:{failed_ms + delay_ms}:{delay_ms}".encode()
    adopted = classify(Message.from_reply(None, [(b"5-0", ())]), [record], (0, 0), failed_ms + jump_ms)
    [(message, wait_s)] = adopted.waiting
    assert message.failures == 3
    assert wait_s == max(0, min(delay_ms, delay_ms - jump_ms)) / 1000


def test_keys_share_the_hash_slot_of_their_stream() -> None:
    assert dead_key("events:user_created", "mail") == "supervisor:{events:user_created}:mail:dead"
    assert dead_key("{a}:b", "mail") == "supervisor:{a}:b:mail:dead"


@given(st.text(alphabet="ab{}:", min_size=1, max_size=12).filter(lambda s: "}" not in s or hash_tag(s) != s))
def test_keys_of_any_stream_hash_like_the_stream(stream: str) -> None:
    assert hash_tag(dead_key(stream, "group")) == hash_tag(stream) or "{" in hash_tag(stream)


class User(BaseModel):
    user_id: int
    tags: list[str] = []
    born: datetime | None = None


@dataclass
class Plain:
    number: int
    on: bool


class Typed(TypedDict):
    name: str


def message(**fields: str) -> Message:
    return Message("1-1", "events", "group", fields)


def test_a_string_is_read_as_what_the_model_wants() -> None:
    decode = make_decoder(User)
    expected = User(user_id=4, tags=["a"], born=datetime(2026, 1, 2, tzinfo=UTC))
    for _ in range(2):  # the second time, the field that needs JSON is known
        assert decode(message(user_id="4", tags='["a"]', born="2026-01-02T00:00:00Z")) == expected
    assert make_decoder(Plain)(message(number="1", on="true")) == Plain(1, True)
    assert make_decoder(Typed)(message(name="1")) == {"name": "1"}
    assert make_decoder(dict[str, str])(message(a="1")) == {"a": "1"}


def test_a_field_that_is_no_json_any_more_is_still_read_as_a_string() -> None:
    class Mixed(BaseModel):
        value: int | list[int]

    decode = make_decoder(Mixed)
    assert decode(message(value="[1]")).value == [1]
    assert decode(message(value="5")).value == 5


@pytest.mark.parametrize("fields", [{"user_id": "x"}, {}, {"user_id": "1", "tags": "{"}])
def test_a_misfit_says_which_field(fields: dict[str, str]) -> None:
    with pytest.raises(DecodeError, match=r"user_id|tags"):
        make_decoder(User)(message(**fields))


@pytest.mark.parametrize("annotation", [int, str, dict[str, int], set[str], Any])
def test_an_annotation_that_can_not_be_served_is_refused(annotation: Any) -> None:
    with pytest.raises(TypeError, match="pydantic model"):
        make_decoder(annotation)


def test_a_list_asks_for_batches() -> None:
    assert split_batch(list[User]) == (True, User)
    assert split_batch(User) == (False, User)


def test_a_wrong_declaration_names_file_and_line() -> None:
    with pytest.raises(
        HandlerError, match=r"test_rules\.py:\d+: unknown option 'max_deliverys', did you mean 'max_del"
    ):
        handler("s", group="g", max_deliverys=3)  # type: ignore[call-arg]
    with pytest.raises(HandlerError, match=r"test_rules\.py:\d+: option timeout_s = -1"):
        handler("s", group="g", timeout_s=-1)

    @handler("s", group="g")
    async def nameless(event): ...  # type: ignore[no-untyped-def]

    with pytest.raises(HandlerError, match=r"test_rules\.py:\d+: .*'event' needs an annotation"):
        specs_of(Settings(), [nameless])


@pytest.mark.parametrize(
    "names", [("", "g"), ("a\tb", "g"), ("s", "g\n"), (None, "g"), ("\udcff", "g"), ("s", "\udcff")]
)
def test_a_name_that_redis_can_not_have_is_refused_with_its_place(names: tuple[Any, str]) -> None:
    stream, group = names
    with pytest.raises(HandlerError, match=r"test_rules.py:\d+: (stream|group) must be"):
        handler(stream, group=group)


def test_two_handlers_of_one_group_are_refused() -> None:
    @handler("s", group="g")
    async def one(event: Message) -> None: ...

    @handler("s", group="g")
    async def two(event: Message) -> None: ...

    with pytest.raises(HandlerError, match="already has a handler"):
        specs_of(Settings(), [one, two])


def test_batch_error_keeps_what_failed() -> None:
    error = ValueError("x")
    assert BatchError({"1-1": error}).failed == {"1-1": error}


def test_a_generator_is_no_handler() -> None:
    @handler("events", group="workers")
    async def lazy(message: dict[str, str]):  # type: ignore[no-untyped-def]
        yield message

    with pytest.raises(HandlerError, match=r"test_rules\.py:\d+: .*lazy is a generator"):
        specs_of(Settings(), [lazy])


def test_an_annotation_that_pydantic_refuses_is_named() -> None:
    class Strange:
        pass

    @dataclass
    class Event:
        strange: Strange

    @handler("events", group="workers")
    async def handle(event: Event) -> None: ...

    handle.__annotations__["event"] = Event
    with pytest.raises(HandlerError, match=r"test_rules\.py:\d+: .*handle: pydantic can't validate"):
        specs_of(Settings(), [handle])
