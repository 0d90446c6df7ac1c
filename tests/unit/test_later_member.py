"""The members of the sorted set `later`: what a producer writes is what the stream gets."""

import json
from datetime import UTC, datetime, timedelta, timezone
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.broker.later_set import Waiting
from supervisor.cli.later import _row
from supervisor.core.encode import encode_fields
from supervisor.core.later import When, moment, parse_member, to_member, when_of
from supervisor.errors import UsageError

FIELDS = st.dictionaries(st.text(min_size=1), st.text() | st.binary(), min_size=1, max_size=5)


def as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


@given(st.text(min_size=1), FIELDS)
def test_a_member_has_every_byte_of_its_message(name: str, fields: dict[str, str | bytes]) -> None:
    found = parse_member(to_member(name, fields).encode())
    assert found.id == name
    assert list(found.fields) == list(fields)
    assert {field: as_bytes(value) for field, value in found.fields.items()} == {
        field: as_bytes(value) for field, value in fields.items()
    }


@given(
    st.dictionaries(st.text(min_size=1), st.integers() | st.booleans() | st.none() | st.lists(st.text()), min_size=1)
)
def test_other_programs_write_any_json(fields: dict[str, object]) -> None:
    if fields.keys() <= {"id", "fields"}:
        return
    found = parse_member(json.dumps(fields).encode())
    assert found.fields == encode_fields(fields)


@pytest.mark.parametrize(
    ("member", "message_id", "fields"),
    [
        ('{"user_id": "1", "id": "7"}', None, {"user_id": "1", "id": "7"}),
        ('{"id": "u1", "fields": {"user_id": 1}}', "u1", {"user_id": "1"}),
        ('{"fields": {"a": "b"}, "id": 12}', "12", {"a": "b"}),
        ('{"fields": {"a": "b"}}', None, {"a": "b"}),
        ('{"fields": "b", "id": "1"}', None, {"fields": "b", "id": "1"}),
        (
            '{"n": 12345678901234567890, "x": 0.1234567890123456789}',
            None,
            {"n": "12345678901234567890", "x": "0.1234567890123456789"},
        ),
    ],
)
def test_forms_of_a_member(member: str, message_id: str | None, fields: dict[str, str]) -> None:
    found = parse_member(member.encode())
    assert found.fields == fields
    assert found.id == (message_id or parse_member(member.encode()).id)
    assert message_id or len(found.id) == 16


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (b"hello", "not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[1]", "not a JSON object"),
        (b"{}", "at least one field"),
        (b'{"fields": {}}', "at least one field"),
        (b'{"id": [], "fields": {"a": "b"}}', "its id is not a string"),
        (b'{"id": "\\udc80", "fields": {"a": "b"}}', "its id is not Unicode"),
        (b'{"": "b"}', "a field's name"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": "\\ud800"}', "not Unicode"),
        (b"[" * 100_000, "not JSON"),
        (json.dumps({f"f{n}": "1" for n in range(1001)}).encode(), "at most 1000 fields"),
    ],
)
def test_what_is_no_message_says_why(member: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_member(member)


def test_when_a_message_is_due() -> None:
    assert when_of(None, None) is None
    assert when_of(1.5, None) == When(1500, is_delay=True)
    vienna = timezone(timedelta(hours=1))
    assert when_of(None, datetime(2030, 1, 1, 1, tzinfo=vienna)) == When(1_893_456_000_000, is_delay=False)
    assert when_of(None, datetime(1960, 1, 1, tzinfo=UTC)) == When(0, is_delay=False)
    assert moment(1_893_456_000_000) == datetime(2030, 1, 1, tzinfo=UTC)


def test_any_due_time_can_be_shown() -> None:
    last = datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-12)))
    when = when_of(None, last)
    assert when is not None and when.ms > 253_402_300_800_000
    for ms in (float(when.ms), 1.8e18, inf):
        assert moment(ms).isoformat(timespec="milliseconds") == "9999-12-31T23:59:59.000+00:00"
    assert moment(-1e18).year == 1
    assert Waiting("events", 1.8e15, b"", None).as_dict()["due"] == "9999-12-31T23:59:59.000+00:00"


@pytest.mark.parametrize(
    ("after_s", "at", "why"),
    [
        (1, datetime(2030, 1, 1, tzinfo=UTC), "not both"),
        (-1, None, "between 0 and"),
        (float("nan"), None, "between 0 and"),
        (float("inf"), None, "between 0 and"),
        ("5", None, "'5' must be a number of seconds"),
        (10**400, None, "between 0 and"),
        (None, datetime(2030, 1, 1), "has no timezone"),
        (None, "tomorrow", "'tomorrow' must be a datetime"),
    ],
)
def test_a_time_that_is_refused(after_s: Any, at: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        when_of(after_s, at)


def test_the_list_shows_a_message_before_its_trace() -> None:
    member = b'{"id": "1", "fields": {"traceparent": "00-1-2-03", "kind": "weekly"}}'
    assert _row(Waiting("reports", inf, member, parse_member(member)))[-1] == "kind=weekly traceparent=00-1-2-03"
