"""What every request passes: where the service listens, the token, the origin, the size; and the form of errors."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import redis as redis_py

from api.request_guard import _is_cacheable
from tests.cli.run import run
from tests.http.service import HANDLERS, STREAM, Service, problem
from tests.support.servers import free_port
from tests.support.waiting import eventually

MESSAGES = f"/v1/streams/{STREAM}/messages"
TOKEN = "s3cret"
#: Of the shared service.
BODY_MAX = 1_048_576


@pytest.mark.parametrize(
    ("command", "host"),
    [("api", "0.0.0.0"), ("api", "[::]"), ("start", "192.0.2.1"), ("config check", "0.0.0.0")],
)
def test_only_loopback_without_a_token(tmp_path: Path, command: str, host: str) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    bind = f"{host}:{free_port()}"
    done = run(*command.split(), cwd=tmp_path, env={"SUPERVISOR_API__BIND": bind})
    assert (done.returncode, done.stdout) == (2, "")
    assert f"api.bind = '{bind}'" in done.stderr
    assert "SUPERVISOR_API__TOKEN" in done.stderr


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path, redis_url: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        bind = f"127.0.0.1:{other.getsockname()[1]}"
        done = run("api", "--bind", bind, cwd=tmp_path, redis_url=redis_url)
    assert done.returncode in {1, 2}
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and bind in line


@pytest.mark.parametrize(
    ("path", "cacheable"),
    [
        ("/docs", True), ("/docs/interactive", True), ("/openapi.json", True), ("/problems/invalid", True),
        ("/docs-of-customers", False), ("/openapi.json-of-customers", False), (MESSAGES, False),
    ],
)  # fmt: skip
def test_only_the_documentation_may_be_kept(path: str, cacheable: bool) -> None:
    assert _is_cacheable(path) is cacheable


@pytest.fixture(scope="module")
def guarded(_shared: tuple[object, Service], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a token."""
    url = _shared[0].url  # type: ignore[attr-defined]
    with Service(tmp_path_factory.mktemp("guarded"), url, config=f'[api]\ntoken = "{TOKEN}"') as service:
        yield service


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"])
@pytest.mark.parametrize(
    ("method", "address"),
    [("POST", MESSAGES), ("GET", MESSAGES), ("GET", "/health"), ("GET", "/metrics"), ("GET", "/docs"), ("GET", "/no")],
)
def test_a_token_is_needed(guarded: Service, store: redis_py.Redis, sent: str, method: str, address: str) -> None:
    answer = guarded.http.request(method, address, json={"n": 1}, headers={"authorization": sent} if sent else {})
    problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text
    assert store.dbsize() == 0


def test_the_token_opens_and_probes_need_none(guarded: Service, store: redis_py.Redis) -> None:
    for scheme in ("Bearer", "bearer"):
        assert guarded.http.post(MESSAGES, json={}, headers={"authorization": f"{scheme} {TOKEN}"}).status_code == 422
    for probe in ("/livez", "/readyz", "/startupz", "/problems/unauthorized"):
        eventually(lambda p=probe: guarded.http.get(p).status_code == 200)


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 202), ("none", 202)]
)
def test_pages_of_other_sites_can_not_publish(
    http: httpx.Client, store: redis_py.Redis, site: str, status: int
) -> None:
    answer = http.post(MESSAGES, json={"n": 1}, headers={"sec-fetch-site": site})
    if status == 403:
        problem(answer, 403, "cross-site")
    assert (answer.status_code, store.exists(STREAM)) == (status, int(status == 202))
    assert http.get(MESSAGES, headers={"sec-fetch-site": site}).status_code == 200


@pytest.mark.parametrize("told", [True, False], ids=["told", "chunked"])
@pytest.mark.parametrize("address", [MESSAGES, f"{MESSAGES}:batch"])
def test_a_body_that_is_too_large_is_refused(
    http: httpx.Client, store: redis_py.Redis, address: str, told: bool
) -> None:
    body = json.dumps({"text": "x" * BODY_MAX}).encode()
    content = body if told else iter([body[:500_000], body[500_000:]])
    found = problem(
        http.post(address, content=content, headers={"content-type": "application/json"}), 413, "body-too-large"
    )
    assert str(BODY_MAX) in found["detail"]
    assert store.dbsize() == 0


def test_a_body_of_just_the_limit_is_taken(http: httpx.Client, store: redis_py.Redis) -> None:
    empty = len(json.dumps({"text": ""}))
    answer = http.post(MESSAGES, json={"text": "x" * (BODY_MAX - empty + 1)})
    assert int(answer.request.headers["content-length"]) == BODY_MAX
    assert (answer.status_code, store.xlen(STREAM)) == (202, 1)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(service: Service, store: redis_py.Redis) -> None:
    parts = urlsplit(service.base_url)
    head = f"POST {MESSAGES} HTTP/1.1\r\nhost: [::1]\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
    for _ in range(5):
        with socket.create_connection((parts.hostname, parts.port)) as client:
            client.sendall(head.encode() + b'{"n": ')
    # Its end can't be seen from outside; a request on a connection made later is answered after it.
    eventually(lambda: service.http.get("/livez", headers={"connection": "close"}).status_code == 200)
    assert store.dbsize() == 0
    assert "Traceback" not in service.log


@pytest.mark.parametrize(
    ("method", "address", "status", "kind"),
    [
        ("GET", "/nothing/here", 404, "not-found"),
        ("GET", "/v1/streams/x", 404, "not-found"),
        ("GET", "/problems/no-such", 404, "not-found"),
        ("DELETE", MESSAGES, 405, "method-not-allowed"),
        ("POST", "/health", 405, "method-not-allowed"),
    ],
)
def test_every_error_is_a_problem(http: httpx.Client, method: str, address: str, status: int, kind: str) -> None:
    answer = http.request(method, address)
    problem(answer, status, kind)
    if status == 405:
        assert answer.headers["allow"]


def test_every_kind_of_problem_has_its_page(http: httpx.Client) -> None:
    listed = http.get("/problems/no-such").json()["detail"].partition("there are: ")[2].split(", ")
    assert {"invalid", "redis-unavailable", "unauthorized"} <= set(listed)
    for kind in listed:
        page = http.get(f"/problems/{kind}")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert f"<code>{kind}</code>" in page.text


def test_a_request_id_is_given_back(http: httpx.Client) -> None:
    assert http.get("/livez", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert problem(http.get("/no", headers={"x-request-id": "abc-2"}), 404, "not-found")["request_id"] == "abc-2"
    made = {http.get("/livez", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("", "a b", "x" * 129)}
    assert len(made) == 3
    assert all(len(one) == 16 for one in made)


def test_the_description_names_every_problem_that_a_route_answers_with(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    operations = [
        (path, method, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    ids = [operation["operationId"] for _, _, operation in operations]
    assert len(ids) == len(set(ids)) >= 18
    for path, method, operation in operations:
        assert operation["tags"] and operation["summary"], path
        assert {"403", "405"} <= operation["responses"].keys(), path
        for status, answer in operation["responses"].items():
            schemas = [media.get("schema") for media in answer.get("content", {}).values()]
            assert all(schemas) and (schemas or status == "204"), (path, method, status)
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and path not in ("/readyz", "/startupz", "/health"):
                assert list(answer["content"]) == ["application/problem+json"], (path, method, status)


def test_the_log_of_a_service_that_was_used_is_short(service: Service) -> None:
    lines = [json.loads(line) for line in service.log.splitlines()]
    changes = [line for line in lines if line["event"] == "change over HTTP"]
    assert {line["action"] for line in changes} <= {"dead:replay", "dead:drop", "later:cancel", "later:run"}
    assert [line["event"] for line in lines if line not in changes] == ["listening"]
