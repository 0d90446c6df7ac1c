"""Publishing over HTTP: one message, many, once under a key, and what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import redis as redis_py

from supervisor.keys import idempotency_key
from tests.http.service import STREAM, Service, problem

MESSAGES = f"/v1/streams/{STREAM}/messages"
NDJSON = {"content-type": "application/x-ndjson"}


def test_a_message_is_stored_and_its_location_resolves(http: httpx.Client, store: redis_py.Redis) -> None:
    answer = http.post(MESSAGES, json={"user_id": 1, "email": "ada@example.com", "tags": ["a", None], "ok": True})
    assert answer.status_code == 202
    entry = answer.json()["id"]
    fields = {"user_id": "1", "email": "ada@example.com", "tags": '["a",null]', "ok": "true"}
    at = datetime.fromtimestamp(int(entry.partition("-")[0]) / 1000, UTC)
    assert answer.json() == {"id": entry, "stream": STREAM, "accepted_at": f"{at:%FT%T}.{at.microsecond // 1000:03}Z"}
    assert store.xrange(STREAM) == [(entry, fields)]
    assert http.get(answer.headers["location"]).json() == {"id": entry, "fields": fields}


@pytest.mark.parametrize("stream", ["a/b", "ä ö", "100%", "a?b#c", "x/messages", "tail", "messages:batch", "{t}:x"])
def test_any_name_of_a_stream_finds_its_way(http: httpx.Client, store: redis_py.Redis, stream: str) -> None:
    address = f"/v1/streams/{quote(stream, safe='')}"
    answer = http.post(f"{address}/messages", json={"n": 1})
    assert answer.status_code == 202, answer.text
    assert store.keys() == [stream]
    assert http.get(answer.headers["location"]).json()["fields"] == {"n": "1"}
    assert [m["fields"] for m in http.get(f"{address}/messages").json()["messages"]] == [{"n": "1"}]


def test_fields_in_an_envelope_are_unwrapped(http: httpx.Client, store: redis_py.Redis) -> None:
    http.post(MESSAGES, json={"fields": {"n": 1}})
    http.post(MESSAGES, json={"fields": {"n": 1}, "n": 2})
    assert [fields for _, fields in store.xrange(STREAM)] == [{"n": "1"}, {"fields": '{"n":1}', "n": "2"}]


@pytest.mark.parametrize(
    "body",
    [
        {"content": json.dumps([{"n": n} for n in range(500)]), "headers": {"content-type": "application/json"}},
        {"content": "".join(f'{{"n": {n}}}\n' for n in range(500)), "headers": NDJSON},
        {"content": "\n\r\n".join(f'{{"n": "{n}"}}' for n in range(500)), "headers": NDJSON},
    ],
    ids=["array", "lines", "blank lines between"],
)
def test_a_batch_is_stored_in_order(http: httpx.Client, store: redis_py.Redis, body: dict[str, Any]) -> None:
    answer = http.post(f"{MESSAGES}:batch", **body)
    assert answer.status_code == 202
    ids = answer.json()["ids"]
    assert (answer.json()["stream"], answer.json()["count"], len(answer.json()["results"])) == (STREAM, 500, 500)
    assert store.xrange(STREAM) == [(entry, {"n": str(n)}) for n, entry in enumerate(ids)]


@pytest.mark.parametrize(
    ("bad", "status", "kind"),
    [('{"n": ', 400, "malformed-json"), ("[1]", 422, "invalid"), ("{}", 422, "invalid"), ('"text"', 422, "invalid")],
)
def test_one_bad_line_refuses_all_and_is_named(
    http: httpx.Client, store: redis_py.Redis, bad: str, status: int, kind: str
) -> None:
    lines = ['{"n": 1}', '{"n": 2}', "", bad, '{"n": 3}']
    found = problem(http.post(f"{MESSAGES}:batch", content="\n".join(lines), headers=NDJSON), status, kind)
    assert found["detail"].startswith("line 4: ")
    assert store.dbsize() == 0


def test_one_bad_item_of_an_array_refuses_all_and_is_pointed_at(http: httpx.Client, store: redis_py.Redis) -> None:
    found = problem(http.post(f"{MESSAGES}:batch", json=[{"n": 1}, {"a/b": 1, "": 2}, 3]), 422, "invalid")
    assert found["errors"][0]["pointer"].startswith("#/1")
    assert found["detail"].startswith("message 1: ")
    assert store.dbsize() == 0


def test_a_batch_has_a_limit(http: httpx.Client, store: redis_py.Redis) -> None:
    found = problem(http.post(f"{MESSAGES}:batch", content='{"n":1}\n' * 10_001, headers=NDJSON), 422, "invalid")
    assert "at most 10000" in found["detail"]
    assert store.dbsize() == 0


@pytest.mark.parametrize(
    ("content", "status", "kind"),
    [
        ("{", 400, "malformed-json"),
        ("", 400, "malformed-json"),
        ('{"a": "\\ud800"}', 400, "malformed-json"),
        ("NaN", 400, "malformed-json"),
        ("{}", 422, "invalid"),
        ("[]", 422, "invalid"),
        ("1", 422, "invalid"),
        ('{"": 1}', 422, "invalid"),
    ],
)
def test_what_is_no_message_is_refused(
    http: httpx.Client, store: redis_py.Redis, content: str, status: int, kind: str
) -> None:
    problem(http.post(MESSAGES, content=content, headers={"content-type": "application/json"}), status, kind)
    assert store.dbsize() == 0


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_media_type_is_refused(http: httpx.Client, store: redis_py.Redis, media_type: str) -> None:
    headers = {"content-type": media_type} if media_type else {}
    for address in (MESSAGES, f"{MESSAGES}:batch"):
        problem(http.post(address, content='{"email": "ada@example.com"}', headers=headers), 415, "media-type")
    assert store.dbsize() == 0


@pytest.mark.parametrize("stream", ["supervisor:{x}:g:dead", "x" * 513, "a%00b"])
def test_names_that_can_not_be_written_are_refused(http: httpx.Client, store: redis_py.Redis, stream: str) -> None:
    problem(http.post(f"/v1/streams/{stream}/messages", json={"n": 1}), 422, "invalid")
    assert store.dbsize() == 0


def test_a_key_of_another_type_is_a_conflict(http: httpx.Client, store: redis_py.Redis) -> None:
    store.set(STREAM, "text")
    for options in ({}, {"headers": {"idempotency-key": "k"}}):
        assert problem(http.post(MESSAGES, json={"n": 1}, **options), 409, "wrong-type")["code"] == "WRONGTYPE"
    problem(http.post(f"{MESSAGES}:batch", json=[{"n": 1}]), 409, "wrong-type")
    problem(http.get(MESSAGES), 409, "wrong-type")
    assert store.keys() == [STREAM]


def test_both_ways_to_publish_are_described(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for path in ("/v1/streams/{stream}/messages", "/v1/streams/{stream}/messages:batch"):
        described = paths[path]["post"]
        assert [one["name"] for one in described["parameters"]] == [
            "stream",
            "Idempotency-Key",
            "validate",
            "after_s",
            "at",
            "wait_replicas",
            "wait_aof",
            "traceparent",
        ]
        assert "application/json" in described["requestBody"]["content"]
        assert {"202", "400", "401", "409", "413", "415", "422", "503"} <= described["responses"].keys()


def test_a_wrong_method_lists_those_of_the_address(http: httpx.Client) -> None:
    assert problem(http.put(MESSAGES), 405, "method-not-allowed")
    assert http.put(MESSAGES).headers["allow"] == "GET, HEAD, POST"
    assert http.get(f"{MESSAGES}:batch").headers["allow"] == "POST"


def test_numbers_stay_as_written_and_a_name_occurs_once(http: httpx.Client, store: redis_py.Redis) -> None:
    text = '{"n": 1e2, "list": [18446744073709551616, {"deep": 12345678901234567.89}]}'
    as_json = {"content-type": "application/json"}
    for address, content, headers in (
        (MESSAGES, text, as_json), (f"{MESSAGES}:batch", f"[{text}]", as_json), (f"{MESSAGES}:batch", text, NDJSON),
    ):  # fmt: skip
        assert http.post(address, content=content, headers=headers).status_code == 202
        twice = content.replace('"list"', '"n": 1, "list"')
        found = problem(http.post(address, content=twice, headers=headers), 400, "malformed-json")
        assert "two members 'n'" in found["detail"]
    stored = {"n": "1e2", "list": '[18446744073709551616,{"deep":12345678901234567.89}]'}
    assert [fields for _, fields in store.xrange(STREAM)] == [stored] * 3


# Once


def test_a_key_stores_once(http: httpx.Client, store: redis_py.Redis) -> None:
    quoted = http.post(MESSAGES, json={"n": 1, "m": 2}, headers={"idempotency-key": '"8e03978e"'})
    bare = http.post(MESSAGES, json={"m": 2, "n": 1}, headers={"idempotency-key": "8e03978e"})
    assert (quoted.status_code, bare.status_code) == (202, 202)
    assert quoted.json() == bare.json()
    assert quoted.headers["location"] == bare.headers["location"]
    assert "idempotency-replayed" not in quoted.headers
    assert bare.headers["idempotency-replayed"] == "true"
    found = problem(
        http.post(MESSAGES, json={"n": 2}, headers={"idempotency-key": "8e03978e"}), 422, "idempotency-key-reused"
    )
    assert "8e03978e" in found["detail"]
    assert store.xlen(STREAM) == 1
    http.post(MESSAGES, json={"n": 3}, headers={b"idempotency-key": "ä".encode()})
    assert store.exists(idempotency_key(STREAM, "ä"))
    store.delete(idempotency_key(STREAM, "ä"))
    [key] = store.keys("supervisor:*")
    assert 86_000 < store.ttl(key) <= 86_400


def test_a_key_belongs_to_one_stream(http: httpx.Client, store: redis_py.Redis) -> None:
    for stream in ("a", "b"):
        answer = http.post(f"/v1/streams/{stream}/messages", json={"n": 1}, headers={"idempotency-key": "k"})
        assert "idempotency-replayed" not in answer.headers
    assert (store.xlen("a"), store.xlen("b")) == (1, 1)


def test_a_batch_is_stored_once_under_its_key(http: httpx.Client, store: redis_py.Redis) -> None:
    headers = {"idempotency-key": "batch"}
    first = http.post(f"{MESSAGES}:batch", json=[{"n": 1}, {"n": 2}], headers=headers)
    again = http.post(f"{MESSAGES}:batch", json=[{"n": 1}, {"n": 2}], headers=headers)
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    problem(http.post(f"{MESSAGES}:batch", json=[{"n": 1}], headers=headers), 422, "idempotency-key-reused")
    assert store.xlen(STREAM) == 2


def test_the_same_key_from_many_at_once_stores_once(service: Service, store: redis_py.Redis) -> None:
    def publish(_: int) -> str:
        found: str = service.patient.post(MESSAGES, json={"n": 1}, headers={"idempotency-key": "k"}).json()["id"]
        return found

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(publish, range(40)))) == 1
    assert store.xlen(STREAM) == 1


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "a\tb"])
def test_a_key_that_is_none_is_refused(http: httpx.Client, store: redis_py.Redis, key: str) -> None:
    problem(http.post(MESSAGES, json={"n": 1}, headers={"idempotency-key": key}), 400, "bad-request")
    assert store.dbsize() == 0
