"""A body that a route would misread is refused: one where it takes none, one that names a member twice."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis as redis_py

from tests.http.service import STREAM, Service, example, problem

JSON = {"content-type": "application/json"}
MESSAGES = f"/v1/streams/{STREAM}/messages"
#: More digits than Python reads.
HUGE = '{"n": ' + "1" * 5_000 + "}"
LARGE = "[" + '{"n": 1},' * 9_000 + HUGE + "]"


@pytest.fixture(scope="module")
def shop(_shared: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service with the example's router."""
    with Service(tmp_path_factory.mktemp("example"), _shared[0].url, **example()) as service:
        yield service.patient


def test_each_route_that_takes_no_body_refuses_one(service: Service) -> None:
    found = []
    for path, operations in service.http.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items() if path.startswith("/v1/") else ():
            if "requestBody" in operation:
                continue
            address = path.format(stream="events", group="g", entry_id="1-0", later_id="x", name="nightly")
            for content in (b'{"workers": 2}', b"{}", b"x", iter([b"", b"x"])):
                told = problem(service.http.request(method, address, content=content, headers=JSON), 422, "invalid")
                assert told["detail"] == "this address takes no body"
                assert told["errors"] == [{"pointer": "#", "detail": "this address takes no body"}]
            assert "422" in operation["responses"], (method, path)
            found.append(f"{method} {address}")
    assert {"post /v1/pool:pause", "post /v1/pool:resume", "post /v1/pool:restart"} <= set(found)
    assert {"post /v1/schedules/nightly:run", "delete /v1/streams/events/later/x", "get /v1/workers"} <= set(found)


def test_an_empty_body_is_none(service: Service) -> None:
    empty: tuple[Any, ...] = (b"", iter([b""]))
    for content in empty:
        problem(service.http.post("/v1/pool:pause", content=content, headers=JSON), 503, "no-pool")
        assert service.http.request("GET", "/v1/later", content=content).status_code == 200


@pytest.mark.parametrize(
    ("address", "text", "name"),
    [
        ("/v1/pool:scale", '{"workers": 1, "workers": 2}', "workers"),
        ("/v1/streams/a/dead:drop", '{"all": true, "all": false}', "all"),
        ("/v1/streams/a/groups/g/dead:replay", '{"ids": ["1-0"], "ids": ["2-0"]}', "ids"),
        ("/users", '{"email": "a@example.com", "email": "b@example.com"}', "email"),
        (MESSAGES, '{"n": 1, "n": 2}', "n"),
    ],
    ids=["scale", "drop", "replay", "users", "publish"],
)
def test_a_member_that_is_there_twice_is_named(shop: httpx.Client, address: str, text: str, name: str) -> None:
    told = problem(shop.post(address, content=text, headers=JSON), 400, "malformed-json")
    assert told["detail"] == f"an object has two members {name!r}"


def test_nothing_is_stored_for_a_member_that_is_there_twice(shop: httpx.Client, store: redis_py.Redis) -> None:
    assert shop.post("/users", content='{"email": "a@example.com", "email": "b"}', headers=JSON).status_code == 400
    assert store.keys() == []


@pytest.mark.parametrize(
    ("address", "text", "where"),
    [
        (MESSAGES, HUGE, ""),
        (f"{MESSAGES}:batch", f"[{HUGE}]", ""),
        (f"{MESSAGES}:batch", LARGE, "message 9000: "),
        (f"{MESSAGES}:batch", LARGE.replace("1}", '"\u00e4"}', 1), "message 9000: "),
        ("/v1/pool:scale", HUGE.replace("n", "workers"), ""),
        ("/v1/streams/a/dead:drop", HUGE, ""),
        ("/users", HUGE, ""),
    ],
    ids=["one", "batch", "large", "not-ascii", "scale", "drop", "users"],
)
def test_a_number_with_too_many_digits_is_told_in_plain_words(
    shop: httpx.Client, address: str, text: str, where: str
) -> None:
    told = problem(shop.post(address, content=text.encode(), headers=JSON), 400, "malformed-json")
    assert told["detail"] == f"{where}an integer has more than 4,300 digits"


def test_what_is_no_json_for_the_framework_is_the_same_problem(shop: httpx.Client) -> None:
    for text in (b"{", b"\xff", b"[" * 100_000, b'{"workers": NaN}', b'{"workers": "\\ud800"}'):
        for address in ("/v1/pool:scale", "/users", MESSAGES):
            problem(shop.post(address, content=text, headers=JSON), 400, "malformed-json")
