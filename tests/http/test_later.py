"""Messages for later and schedules over HTTP."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import redis as redis_py

from supervisor.keys import later_key
from tests.http.service import STREAM, Service, problem
from tests.support.servers import AnyServer

MESSAGES = f"/v1/streams/{STREAM}/messages"
SCHEDULES = """
[schedule."nightly"]
stream = "reports"
cron = "0 3 * * *"
timezone = "Europe/Vienna"
fields = { kind = "nightly" }
"""


@contextmanager
def writes_paused(client: redis_py.Redis) -> Iterator[None]:
    """Let Redis answer reads only."""
    client.client_pause(10_000, all=False)
    try:
        yield
    finally:
        client.client_unpause()


def test_a_change_whose_answer_is_lost_may_be_done(service: Service, store: redis_py.Redis) -> None:
    store.zadd(later_key(STREAM), {'{"id":"u1","fields":{"n":"1"}}': 4e12})
    address = f"/v1/streams/{STREAM}/later/u1"
    with writes_paused(store):
        for answer in (service.http.delete(address), service.http.post(f"{address}:run")):
            found = problem(answer, 503, "outcome-unknown")
            assert found["code"] == "UNREACHABLE" and "404 says that it is done" in found["detail"]


def test_a_message_for_later_is_listed_and_cancelled(http: httpx.Client, store: redis_py.Redis) -> None:
    answer = http.post(MESSAGES, json={"n": 1}, params={"after_s": 60})
    assert answer.status_code == 202
    told = answer.json()
    assert told.keys() == {"later", "due", "stream"} and told["stream"] == STREAM
    left_s = (datetime.fromisoformat(told["due"]) - datetime.now(UTC)).total_seconds()
    assert 30 < left_s <= 60
    assert store.zcard(later_key(STREAM)) == 1 and not store.exists(STREAM)
    waiting = {"stream": STREAM, "id": told["later"], "due": told["due"], "fields": {"n": "1"}}
    assert http.get(answer.headers["location"]).json() == waiting
    counted = {"stream": STREAM, "waiting": 1, "overdue_s": None, "malformed": 0}
    assert http.get("/v1/later").json() == {"messages": [waiting], "streams": [counted]}
    assert http.get("/v1/later", params={"stream": "other"}).json() == {"messages": [], "streams": []}
    explained = http.get(f"{answer.headers['location']}/explain").json()
    assert explained["presence"] == "waiting until it is due" and explained["known"] is True
    assert explained["later"]["due_ms"] == int(datetime.fromisoformat(told["due"]).timestamp() * 1000)
    assert http.delete(answer.headers["location"]).status_code == 204
    explained = http.get(f"{answer.headers['location']}/explain").json()
    assert explained["presence"] == "cancelled" and explained["later"]["cancelled_ms"]
    problem(http.get(f"/v1/streams/{STREAM}/later/unknown/explain"), 404, "not-found")
    assert problem(http.delete(answer.headers["location"]), 404, "not-found")
    assert not store.exists(later_key(STREAM))


@pytest.mark.parametrize("at", ["2099-01-31T08:00:00%2B01:00", "2099-01-31T08:00:00+01:00", "2099-01-31T07:00:00Z"])
def test_a_time_with_a_timezone(http: httpx.Client, at: str) -> None:
    answer = http.post(f"{MESSAGES}?at={at}", json={"n": 1})
    assert answer.json()["due"] == "2099-01-31T07:00:00.000+00:00"


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("after_s=soon", "'soon' is not a number"),
        ("after_s=-1", "is not a number of seconds from 0 on"),
        ("after_s=nan", "is not a number"),
        ("at=2099-01-31T08:00:00", "has no timezone"),
        ("at=tomorrow", "is not a time"),
        ("at=2099-01-31T07:00:00Z&after_s=1", "not both"),
    ],
)
def test_a_time_that_is_refused(http: httpx.Client, query: str, why: str) -> None:
    for address in (MESSAGES, f"{MESSAGES}:batch"):
        told = problem(
            http.post(f"{address}?{query}", json={"n": 1} if address == MESSAGES else [{"n": 1}]), 422, "invalid"
        )
        assert why in told["detail"]


def test_a_batch_under_a_key(http: httpx.Client, store: redis_py.Redis) -> None:
    answers = [
        http.post(
            f"{MESSAGES}:batch", json=[{"n": 1}, {"n": 2}], params={"after_s": 60}, headers={"Idempotency-Key": "k"}
        )
        for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json() and len(answers[0].json()["later"]) == 2
    assert "Idempotency-Replayed" not in answers[0].headers and answers[1].headers["Idempotency-Replayed"] == "true"
    assert store.zcard(later_key(STREAM)) == 2


def test_a_message_is_published_before_its_time(http: httpx.Client, store: redis_py.Redis) -> None:
    store.zadd(later_key(STREAM), {'{"id":"u 1","fields":{"n":"1"}}': 4e12, "bad": 5e12})
    found = http.get("/v1/later", params={"stream": STREAM}).json()
    listed = found["messages"]
    assert found["streams"] == [{"stream": STREAM, "waiting": 2, "overdue_s": None, "malformed": 0}]
    assert listed[0]["id"] == "u 1" and "error" in listed[1] and listed[1]["due"].startswith("2128-")
    answer = http.post(f"/v1/streams/{STREAM}/later/u%201:run")
    assert answer.status_code == 202 and store.xrange(STREAM) == [(answer.json()["id"], {"n": "1"})]
    assert problem(http.post(f"/v1/streams/{STREAM}/later/{listed[1]['id']}:run"), 404, "not-found")


def test_schedules_and_who_changed_what(start_service: Callable[..., Service], redis_server: AnyServer) -> None:
    service = start_service(redis_server.url, config=SCHEDULES + '[log]\nformat = "json"')
    web = service.patient
    [nightly] = web.get("/v1/schedules").json()["schedules"]
    assert nightly["name"] == "nightly" and len(nightly["next"]) == 3 and nightly["last"] is None
    answer: Any = web.post("/v1/schedules/nightly:run", headers={"x-request-id": "why"})
    assert answer.status_code == 202
    entry = answer.json()["id"]
    client = redis_server.sync(decode_responses=True)
    assert client.xrange("reports") == [(entry, {"kind": "nightly"})]
    assert "did you mean 'nightly'" in problem(web.post("/v1/schedules/nightl:run"), 404, "not-found")["detail"]
    first, second = web.post(f"{MESSAGES}:batch?after_s=60", json=[{"n": 1}, {"n": 2}]).json()["later"]
    assert web.delete(f"/v1/streams/{STREAM}/later/{first}").status_code == 204
    assert web.post(f"/v1/streams/{STREAM}/later/{second}:run").status_code == 202
    problem(web.delete(f"/v1/streams/{STREAM}/later/{first}"), 404, "not-found")
    with writes_paused(client):
        found = problem(service.http.post("/v1/schedules/nightly:run"), 503, "outcome-unknown")
        assert found["code"] == "UNREACHABLE" and "Look at the stream" in found["detail"]
    lines = [line for line in map(json.loads, service.log.splitlines()) if line["event"] == "change over HTTP"]
    assert [(line["action"], line["stream"], line.get("id"), line.get("outcome")) for line in lines] == [
        ("schedule:run", "reports", entry, None), ("later:cancel", STREAM, first, None),
        ("later:run", STREAM, second, None), ("schedule:run", "reports", None, "unknown"),
    ]  # fmt: skip
    assert (lines[0]["schedule"], lines[0]["role"], lines[0]["request_id"]) == ("nightly", "local", "why")
