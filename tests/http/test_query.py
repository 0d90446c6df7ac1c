"""Parameters of a query that a route does not have are refused: a misspelt one would count as left out."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.http.service import Service, example, problem


def test_each_route_names_a_parameter_that_it_does_not_have(service: Service) -> None:
    found = []
    for path, operations in service.http.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items() if path.startswith("/v1/") else ():
            known = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
            address = path.format(stream="events", group="g", entry_id="1-0", later_id="x", name="nightly")
            body: Any = {} if method == "post" else None
            told = problem(service.http.request(method, f"{address}?Limit=5&x=", json=body), 422, "invalid")
            assert [one["parameter"] for one in told["errors"]] == ["Limit", "x"]
            assert told["detail"].endswith(f"(known: {', '.join(known)})" if known else "(this address takes none)")
            assert "422" in operation["responses"], (method, path)
            found.append(address)
    assert "/v1/workers" in found and "/v1/streams/events/tail" in found and "/v1/pool:pause" in found


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("/v1/later?steam=a", "'steam', did you mean 'stream'?"),
        ("/v1/streams/a/messages?contu=5&reverse=true", "'contu', did you mean 'count'?"),
        ("/v1/dead?raeson=a", "'raeson', did you mean 'reason'?"),
        ("/v1/streams/a/messages?Count=5", "'Count', did you mean 'count'?"),
    ],
)
def test_the_answer_says_what_was_meant(http: httpx.Client, address: str, meant: str) -> None:
    told = problem(http.get(address), 422, "invalid")
    assert told["detail"].startswith(f"unknown parameter {meant} (known: ")
    assert [one["detail"] for one in told["errors"]] == [told["detail"].partition(" (")[0]]


def test_the_answer_to_a_long_name_is_short(http: httpx.Client) -> None:
    told = problem(http.get(f"/v1/later?{'n' * 20_000}=1"), 422, "invalid")
    assert told["errors"][0]["parameter"] == "n" * 100 and len(told["detail"]) < 1000


def test_nothing_is_published_with_a_misspelt_parameter(http: httpx.Client, store: Any) -> None:
    told = problem(http.post("/v1/streams/a/messages?after=30", json={"n": 1}), 422, "invalid")
    assert "'after', did you mean 'after_s'?" in told["detail"]
    assert store.keys() == []


def test_each_route_refuses_a_parameter_that_is_given_twice(service: Service) -> None:
    found = []
    for path, operations in service.http.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items() if path.startswith("/v1/") else ():
            address = path.format(stream="events", group="g", entry_id="1-0", later_id="x", name="nightly")
            body: Any = {"n": 1} if method == "post" else None
            for name in [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]:
                told = problem(service.http.request(method, f"{address}?{name}=1&{name}=1", json=body), 422, "invalid")
                assert told["detail"] == f"{name!r} may be given once only"
                assert told["errors"] == [{"parameter": name, "detail": told["detail"]}]
                found.append(name)
    assert {"count", "after_s", "cursor"} < set(found)


def test_many_unknown_parameters_have_a_short_answer(http: httpx.Client) -> None:
    answer = http.get(f"/v1/dead?{'&'.join(f'p{n}' for n in range(9_000))}")
    assert len(problem(answer, 422, "invalid")["errors"]) == 10 and len(answer.content) < 3000


def test_all_other_routes_take_what_comes(redis_url: str, start_service: Callable[..., Service]) -> None:
    service = start_service(redis_url, **example())
    assert {service.http.get(f"/{name}?x=1").status_code for name in ("livez", "health", "metrics", "docs")} == {200}
    assert service.http.get("/users/1?x=1").status_code == 404
