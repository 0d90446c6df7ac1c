"""The dashboard: its page is whole and needs no token, its data does; the board's events are the pool's state."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from api import board_routes
from api.problems import Problem
from tests.http.service import Service, problem
from tests.http.test_docs import Page
from tests.support.waiting import eventually

TOKEN, READ = "the operator's token", "the token that only looks"
ROUTER = """
from fastapi import APIRouter
router = APIRouter()

@router.get("/ui/reports")
async def reports() -> str:
    return "secret"
"""


@pytest.fixture
def guarded(redis_url: str, start_service: Callable[..., Service]) -> Service:
    """A service with both tokens, and a project's router below the dashboard's address."""
    files = {"read_token": READ, "web.py": ROUTER}
    config = f'[api]\ntoken = "{TOKEN}"\nread_token_file = "read_token"\nrouters = ["web:router"]\nmax_tails = 1'
    return start_service(redis_url, files=files, config=config)


@contextmanager
def board(service: Service, token: str = "") -> Iterator[Iterator[dict[str, Any]]]:
    """The data of the board's events."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with service.http.stream("GET", "/v1/board", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        yield (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))


def page_and_files(http: httpx.Client, prefix: str) -> tuple[httpx.Response, dict[str, httpx.Response]]:
    """Fetch the page below a proxy's prefix as a browser does, and what it loads."""
    headers = {"x-forwarded-prefix": prefix} if prefix else {}
    address = f"{prefix}/ui"
    answer = http.get(address, headers=headers)
    loaded = [link for link in Page(answer.text).links if link.startswith("ui/")]
    return answer, {link: http.get(urljoin(address, link), headers=headers) for link in loaded}


@pytest.mark.parametrize("prefix", ["", "/shop"])
def test_the_page_and_its_files_need_no_token_and_nothing_from_elsewhere(guarded: Service, prefix: str) -> None:
    page, files = page_and_files(guarded.http, prefix)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert {name: answer.status_code for name, answer in files.items()} == {
        "ui/dashboard.css": 200,
        "ui/dashboard.js": 200,
    }
    assert files["ui/dashboard.js"].headers["content-type"].startswith("text/javascript")
    everything = page.text + "".join(answer.text for answer in files.values())
    assert re.findall(r"https?://[^\"']+", everything) == ["http://www.w3.org/2000/svg"]  # a name, not an address
    assert "innerHTML" not in everything


def test_the_script_finds_its_elements_and_routes(http: httpx.Client) -> None:
    page, files = page_and_files(http, "")
    script = files["ui/dashboard.js"].text
    named = set(re.findall(r'byId\("([^"]+)"\)', script))
    assert len(named) > 15 and named <= Page(page.text).ids
    addresses = {re.sub(r"\$\{[^}]*\}", "{}", one) for one in re.findall(r'[`"](v1/[^`"?]+)', script)}
    assert addresses == {"v1/board", "v1/pool:{}", "v1/streams/{}/groups/{}", "v1/streams/{}/messages/{}/explain"}
    assert set(re.findall(r'data-command="(\w+)"', page.text)) == {"pause", "resume", "restart"}
    routes = http.get("/openapi.json").json()["paths"]
    for route in (
        "/v1/board", "/v1/pool:pause", "/v1/pool:resume", "/v1/pool:restart", "/v1/pool:scale",
        "/v1/streams/{stream}/groups/{group}/dead", "/v1/streams/{stream}/groups/{group}/dead:replay",
        "/v1/streams/{stream}/groups/{group}/dead:drop", "/v1/streams/{stream}/messages/{entry_id}/explain",
    ):  # fmt: skip
        assert route in routes


def test_other_paths_below_the_page_need_a_token(guarded: Service) -> None:
    problem(guarded.http.get("/ui/reports"), 401, "unauthorized")
    problem(guarded.http.get("/ui/other.js"), 401, "unauthorized")
    problem(guarded.http.get("/v1/board"), 401, "unauthorized")
    problem(guarded.http.post("/ui"), 401, "unauthorized")
    operator = {"authorization": f"Bearer {TOKEN}"}
    assert guarded.http.get("/ui/reports", headers=operator).json() == "secret"
    problem(guarded.http.get("/ui/other.js", headers=operator), 404, "not-found")


def test_events_are_the_state_with_the_role_of_the_client(guarded: Service) -> None:
    for token, role in ((TOKEN, "operator"), (READ, "reader")):
        with board(guarded, token) as events:
            first, second = next(events), next(events)
        assert first["role"] == second["role"] == role
        assert first["at"] < second["at"]
        known = guarded.http.get("/health", headers={"authorization": f"Bearer {token}"}).json()
        assert second["status"].keys() == known.keys()
        assert second["status"]["reason"] == known["reason"] == "no pool on this host"
        eventually(lambda: followers(guarded) == 0)


def test_a_board_counts_as_a_client_that_follows(guarded: Service) -> None:
    with board(guarded, TOKEN) as events:
        next(events)
        refused = guarded.http.get("/v1/board", headers={"authorization": f"Bearer {TOKEN}"})
        assert "max_tails = 1" in problem(refused, 503, "busy")["detail"]


@pytest.mark.parametrize("path", ["/v1/board", "/v1/streams/orders/tail"])
def test_a_token_that_is_taken_back_ends_what_it_follows(guarded: Service, tmp_path: Path, path: str) -> None:
    headers = {"authorization": f"Bearer {READ}"}
    with guarded.http.stream("GET", path, headers=headers) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("retry: ")
        (tmp_path / "service0" / "read_token").write_text("another token")
        for _ in lines:
            pass  # the answer ends
    problem(guarded.http.get(path, headers=headers), 401, "unauthorized")


def followers(service: Service) -> int:
    text = service.http.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
    (count,) = re.findall(r"^supervisor_http_tails\S* (\d+)$", text, re.MULTILINE)
    return int(count)


def test_boards_do_not_delay_the_end_of_the_service(redis_url: str, start_service: Callable[..., Service]) -> None:
    service = start_service(redis_url)
    with board(service) as events:
        assert next(events)["role"] == "local"
        assert service.stop() == 0
        list(events)  # the answer ends
    assert "timeout graceful shutdown" not in service.log and "Traceback" not in service.log


def test_a_query_is_refused(http: httpx.Client) -> None:
    problem(http.get("/v1/board", params={"every": 1}), 422, "invalid")


async def test_clients_that_come_at_once_are_not_too_many() -> None:
    settings = SimpleNamespace(api=SimpleNamespace(max_tails=1))
    service: Any = SimpleNamespace(tails=0, settings=settings)
    await board_routes.board(service)
    with pytest.raises(Problem, match="already follow"):
        await board_routes.board(service)
