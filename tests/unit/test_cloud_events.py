"""CloudEvents 1.0: what an event is as a message, and which ones are refused."""

from typing import Any

import pytest

from api.cloud_events import EventError, binary, key_of, structured

EVENT = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order.created"}
FIELDS = {"ce_specversion": "1.0", "ce_id": "7", "ce_source": "/shop", "ce_type": "order.created"}
HEADERS = [(f"ce-{name}", value) for name, value in EVENT.items()]


@pytest.mark.parametrize(
    ("more", "fields"),
    [
        ({}, {}),
        ({"data": {"n": 1, "tags": ["a"]}}, {"n": 1, "tags": ["a"]}),
        ({"data": "text"}, {"data": "text"}),
        ({"data": [1]}, {"data": [1]}),
        ({"data": "<a/>", "datacontenttype": "text/xml"}, {"data": "<a/>", "ce_datacontenttype": "text/xml"}),
        ({"data_base64": "AAE="}, {"data_base64": "AAE="}),
        ({"data": None, "time": "2026-01-31T12:00:00Z"}, {"ce_time": "2026-01-31T12:00:00Z"}),
        ({"traceparent": "00-1", "data": {"ce_id": "8"}}, {"traceparent": "00-1"}),
    ],
)  # fmt: skip
def test_a_structured_event_is_a_message(more: dict[str, Any], fields: dict[str, Any]) -> None:
    event = structured({**EVENT, **more})
    assert event.message == FIELDS | fields
    assert event.identity == ("/shop", "7")


@pytest.mark.parametrize(
    ("change", "member"),
    [
        ({"specversion": "0.3"}, "specversion"), ({"id": ""}, "id"), ({"id": 7}, "id"), ({"type": None}, "type"),
        ({"Subject": "x"}, "Subject"), ({"extra": {}}, "extra"), ({"time": "yesterday"}, "time"),
        ({"time": "2026-01-31T12:00:00"}, "time"), ({"data": 1, "data_base64": "AA=="}, "data"),
        ({"data_base64": {}}, "data_base64"),
    ],
)  # fmt: skip
def test_an_event_that_breaks_the_specification_is_refused(change: dict[str, Any], member: str) -> None:
    with pytest.raises(EventError) as refused:
        structured({**EVENT, **change})
    assert refused.value.member == member


@pytest.mark.parametrize(
    ("media_type", "body", "fields"),
    [
        ("application/json", b'{"n": 1}', {"n": 1}),
        ("application/vnd.x+json", b"[1]", {"data": [1]}),
        ("text/plain", b"hello", {"data": "hello"}),
        ("image/png", b"\xff\x00", {"data_base64": "/wA="}),
        ("", b"", {}),
    ],
)
def test_a_binary_event_is_a_message(media_type: str, body: bytes, fields: dict[str, Any]) -> None:
    told = {"ce_datacontenttype": media_type} if media_type else {}
    event = binary([*HEADERS, ("ce-subject", "Euro%20%E2%82%AC"), ("host", "x")], media_type, body)
    assert event.message == FIELDS | fields | told | {"ce_subject": "Euro €"}


def test_an_attribute_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(EventError) as refused:
        binary([*HEADERS, ("ce-subject", "%FF")], "application/json", b"{}")
    assert refused.value.member == "subject"


def test_the_key_of_an_event_is_its_source_and_id() -> None:
    one, same, other = (structured({**EVENT, **change}) for change in ({}, {"type": "x"}, {"id": "8"}))
    assert key_of([one]) == key_of([same]) != key_of([other])
    assert len({key_of([one]), key_of([one, other]), key_of([other, one])}) == 3
