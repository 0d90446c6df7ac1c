"""The example's router: the user and the event exist together, or neither does."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import httpx
import pytest
import redis as redis_py

from tests.http.service import STREAM, Service, problem
from tests.http.service import example as options

LAST_ID = f"users:{{{STREAM}}}:last_id"
USERS = f"users:{{{STREAM}}}:by_id"


@pytest.fixture(scope="module")
def example(_shared: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with the shipped handlers and their router."""
    with Service(tmp_path_factory.mktemp("example"), _shared[0].url, **options()) as service:
        yield service


@pytest.fixture
def http(example: Service, store: redis_py.Redis) -> httpx.Client:
    return example.patient


def test_a_user_is_stored_and_the_event_published(http: httpx.Client, store: redis_py.Redis) -> None:
    answer = http.post("/users", json={"email": "Ada@Example.com", "name": "Ada \u2764"})
    assert (answer.status_code, answer.headers["location"]) == (201, "/users/1")
    made = answer.json()
    event_id, created_at = made.pop("event_id"), made["created_at"]
    assert made == {"user_id": 1, "email": "Ada@example.com", "name": "Ada \u2764", "created_at": created_at}
    assert datetime.now(UTC) - datetime.fromisoformat(created_at) < timedelta(seconds=10)
    event = {"user_id": "1", "email": "Ada@example.com", "name": "Ada \u2764", "created_at": created_at}
    assert store.xrange(STREAM) == [(event_id, event)]
    assert http.get("/users/1").json() == made


def test_links_begin_with_the_path_of_the_proxy_and_nothing_keeps_a_copy(http: httpx.Client) -> None:
    headers = {"x-forwarded-prefix": "/shop"}
    for _ in range(2):
        made = http.post("/users", json={"email": "ada@example.com"}, headers=headers)
    assert (made.headers["location"], made.headers["cache-control"]) == ("/shop/users/2", "no-store")
    page = http.get("/users?count=1", headers=headers)
    assert (page.json()["next"], page.headers["cache-control"]) == ("/shop/users?count=1&before=2", "no-store")
    assert "cache-control" not in http.get("/problems/invalid").headers


def test_each_user_has_a_number_of_its_own(http: httpx.Client, store: redis_py.Redis) -> None:
    numbers = [http.post("/users", json={"email": "ada@example.com"}).json()["user_id"] for _ in range(3)]
    assert numbers == [1, 2, 3]
    assert [fields["user_id"] for _, fields in store.xrange(STREAM)] == ["1", "2", "3"]
    assert http.get("/users/2").json()["name"] is None


def test_a_user_is_made_once_under_a_key(http: httpx.Client, store: redis_py.Redis) -> None:
    user, headers = {"email": "ada@example.com", "name": "Ada"}, {"idempotency-key": '"k-1"'}
    first, again = (http.post("/users", json=user, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json() and again.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers and again.headers["idempotency-replayed"] == "true"
    problem(http.post("/users", json={"email": "b@example.com"}, headers=headers), 422, "idempotency-key-reused")
    problem(http.post("/users", json=user, headers={"idempotency-key": '""'}), 400, "bad-request")
    assert store.xlen(STREAM) == 1 and http.get("/users").json()["total"] == 1
    counted = http.get("/metrics").text
    for outcome in ("stored", "repeated", "conflict"):
        assert f'supervisor_messages_produced_total{{stream="{STREAM}",outcome="{outcome}"}}' in counted
    assert 86_000 < store.ttl(f"users:{{{STREAM}}}:idempotency:k-1") <= 86_400


def test_users_are_counted_and_listed_newest_first(http: httpx.Client, store: redis_py.Redis) -> None:
    assert http.get("/users").json() == {"total": 0, "users": [], "next": None}
    made = [http.post("/users", json={"email": f"user{n}@example.com"}).json() for n in range(1, 6)]
    for user in made:
        del user["event_id"]
    found = http.get("/users").json()
    assert found == {"total": 5, "users": made[::-1], "next": None}
    address, pages = "/users?count=2", []
    while address:
        page = http.get(address).json()
        assert page["total"] == 5
        pages.append([user["user_id"] for user in page["users"]])
        address = page["next"]
    assert pages == [[5, 4], [3, 2], [1]]
    problem(http.get("/users?count=0"), 422, "invalid")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"email": "ada"}, "#/email"),
        ({"email": "ada@"}, "#/email"),
        ({"email": None}, "#/email"),
        ({"name": "Ada"}, "#/email"),
        ({"email": "ada@example.com", "name": ""}, "#/name"),
        ({"email": "ada@example.com", "name": "x" * 201}, "#/name"),
        ({"email": "ada@example.com", "admin": True}, "#/admin"),
        ([], "#"),
    ],
    ids=str,
)
def test_what_is_no_user_is_refused(http: httpx.Client, store: redis_py.Redis, body: Any, pointer: str) -> None:
    found = problem(http.post("/users", json=body), 422, "invalid")
    assert [error["pointer"] for error in found["errors"]] == [pointer]
    assert store.dbsize() == 0


def test_a_body_that_is_no_json_is_refused(http: httpx.Client, store: redis_py.Redis) -> None:
    for content in ("{", '{"email": "\\ud800@example.com"}', b'{"email": "\xff@example.com"}'):
        answer = http.post("/users", content=content, headers={"content-type": "application/json"})
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.status_code in (400, 422)
    assert store.dbsize() == 0


Break = Callable[[redis_py.Redis], Any]


def everything(store: redis_py.Redis) -> dict[Any, Any]:
    return {key: store.dump(key) for key in store.scan_iter()}


@pytest.mark.parametrize(
    ("break_it", "status", "kind"),
    [
        (lambda store: store.set(STREAM, "no stream"), 409, "wrong-type"),
        (lambda store: store.set(USERS, "no hash"), 409, "wrong-type"),
        (lambda store: store.lpush(LAST_ID, "no number"), 409, "wrong-type"),
        (lambda store: store.set(LAST_ID, "text"), 503, "redis-refused"),
    ],
    ids=["stream", "users", "last id", "last id as text"],
)
def test_when_the_script_fails_neither_exists(
    http: httpx.Client, store: redis_py.Redis, break_it: Break, status: int, kind: str
) -> None:
    break_it(store)
    before = everything(store)
    assert len(before) == 1
    problem(http.post("/users", json={"email": "ada@example.com"}), status, kind)
    assert everything(store) == before


def test_a_full_server_takes_neither(http: httpx.Client, store: redis_py.Redis) -> None:
    http.post("/users", json={"email": "ada@example.com"})
    before = everything(store)
    store.config_set("maxmemory", 1)
    try:
        answer = http.post("/users", json={"email": "grace@example.com"})
    finally:
        store.config_set("maxmemory", 0)
    assert problem(answer, 503, "redis-refused")["code"] == "OOM"
    assert everything(store) == before
    assert http.post("/users", json={"email": "grace@example.com"}).json()["user_id"] == 2


@pytest.mark.parametrize(
    ("user", "status", "kind"), [("7", 404, "not-found"), ("ada", 422, "invalid"), ("0", 422, "invalid")]
)
def test_a_user_that_is_not_there(http: httpx.Client, user: str, status: int, kind: str) -> None:
    problem(http.get(f"/users/{user}"), status, kind)


def test_the_page_of_all_routes_has_a_command_that_registers_a_user(http: httpx.Client, store: redis_py.Redis) -> None:
    commands = [unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", http.get("/docs").text)]
    (register,) = [command for command in commands if "-X POST" in command and "/users " in command]
    made = http.post("/users", json=json.loads(shlex.split(register)[-1]))
    assert made.status_code == 201, made.text


def test_registrations_are_shown_by_day(http: httpx.Client, store: redis_py.Redis) -> None:
    store.hset(f"registrations:{{{STREAM}}}:by_day", mapping={"2026-11-25": 2, "2026-11-24": 1})
    assert list(http.get("/users/registrations").json().items()) == [("2026-11-24", 1), ("2026-11-25", 2)]
