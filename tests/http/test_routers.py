"""A project's own routers in the HTTP service: the same rules as for its own routes, and clear errors."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.cli.run import run
from tests.http.service import HANDLERS, PROBLEM, Service, problem
from tests.support.servers import RedisServer, free_port

TOKEN = "s3cret"
BODY_MAX = 2048
SHOP = """
from typing import Annotated

from fastapi import APIRouter, HTTPException, Security, WebSocket
from fastapi.security import HTTPBasic
from pydantic import BaseModel, Field
from supervisor.fastapi import PublisherDep, RedisDep

router = APIRouter()

class Order(BaseModel):
    item: Annotated[str, Field(min_length=1)]

@router.post("/orders", status_code=201)
async def create(order: Order, publisher: PublisherDep) -> dict[str, str]:
    return {"id": (await publisher.publish("orders", order)).id}

@router.get("/orders/count")
async def count(redis: RedisDep) -> int:
    return await redis.xlen("orders")

@router.get(
    "/orders/price",
    responses={"default": {"description": "Failed"}, "4XX": {"description": "Wrong"}},
    dependencies=[Security(HTTPBasic(auto_error=False))],
)
async def price() -> int:
    return 1

@router.get("/orders/{number}")
async def read(number: int) -> int:
    raise HTTPException(410, f"order {number} is gone")

@router.websocket("/orders/live")
async def live(socket: WebSocket, redis: RedisDep) -> None:
    await socket.accept()
    await socket.send_text(str(await redis.xlen("orders")))
    await socket.close()

@router.api_route("/{rest:path}", methods=["GET", "POST"])
async def rest(rest: str) -> str:
    return rest
"""
FILES = {"web/__init__.py": "", "web/shop.py": SHOP}
CONFIG = f"""
[api]
max_body_bytes = {BODY_MAX}
routers = ["web.shop:router"]
"""


@pytest.fixture(scope="module")
def shop(_shared: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("shop"), _shared[0].url, config=CONFIG, files=FILES) as service:
        yield service


@pytest.fixture(scope="module")
def guarded_shop(_shared: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    config = f'{CONFIG}\ntoken = "{TOKEN}"'
    with Service(tmp_path_factory.mktemp("guarded"), _shared[0].url, config=config, files=FILES) as service:
        yield service


def test_a_route_publishes_and_reads(shop: Service, store: redis_py.Redis) -> None:
    made = shop.patient.post("/orders", json={"item": "tea"})
    assert made.status_code == 201
    assert store.xrange("orders") == [(made.json()["id"], {"item": "tea"})]
    assert shop.http.get("/orders/count").json() == 1


def test_the_services_own_routes_come_first(shop: Service, store: redis_py.Redis) -> None:
    assert shop.http.get("/livez").text == "ok"
    assert shop.http.get("/what/ever").json() == "what/ever"


def test_errors_are_problems(shop: Service, store: redis_py.Redis) -> None:
    body = problem(shop.http.post("/orders", json={"item": ""}), 422, "invalid")
    assert body["errors"][0]["pointer"] == "#/item"
    store.set("orders", "no stream")
    problem(shop.http.post("/orders", json={"item": "tea"}), 409, "wrong-type")
    gone = shop.http.get("/orders/7")
    assert (gone.status_code, gone.headers["content-type"]) == (410, "application/problem+json")
    expected = {"type": "about:blank", "title": "Gone", "status": 410, "detail": "order 7 is gone", "code": "gone"}
    assert expected.items() <= gone.json().items()


@pytest.mark.parametrize("told", [True, False], ids=["told", "chunked"])
def test_a_body_that_is_too_large_is_refused(shop: Service, store: redis_py.Redis, told: bool) -> None:
    body = b'{"item": "' + b"x" * BODY_MAX + b'"}'
    content = body if told else iter([body[:1000], body[1000:]])
    answer = shop.http.post("/orders", content=content, headers={"content-type": "application/json"})
    problem(answer, 413, "body-too-large")
    assert store.dbsize() == 0


def test_other_sites_and_other_hosts_are_refused(shop: Service, store: redis_py.Redis) -> None:
    sent = {"json": {"item": "tea"}}
    problem(shop.http.post("/orders", **sent, headers={"sec-fetch-site": "cross-site"}), 403, "cross-site")
    problem(shop.http.get("/orders/count", headers={"host": "evil.example"}), 403, "cross-site")
    assert store.dbsize() == 0


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("POST", "/orders"),
        ("GET", "/orders/count"),
        ("GET", "/what/ever"),
        # A route of the project needs the token even under a path whose own routes need none.
        ("POST", "/livez"),
        ("GET", "/problems/of/mine"),
    ],
)
def test_a_token_is_needed(guarded_shop: Service, store: redis_py.Redis, method: str, address: str) -> None:
    ask = guarded_shop.http.request
    problem(ask(method, address, json={"item": "tea"}), 401, "unauthorized")
    assert store.dbsize() == 0
    answer = ask(method, address, json={"item": "tea"}, headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code in (200, 201), answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": f"Bearer {TOKEN}"}, 101),
        ({}, 403),
        ({"authorization": f"Bearer {TOKEN}", "sec-fetch-site": "cross-site"}, 403),
    ],
    ids=["token", "no token", "cross-site"],
)
def test_a_websocket_needs_the_token_too(
    guarded_shop: Service, store: redis_py.Redis, headers: dict[str, str], status: int
) -> None:
    url = guarded_shop.base_url.replace("http", "ws") + "/orders/live"
    if status == 101:
        with connect(url, additional_headers=headers, proxy=None) as socket:
            assert socket.recv(30) == "0"
        return
    with pytest.raises(InvalidStatus) as refused:
        connect(url, additional_headers=headers, proxy=None)
    answer = refused.value.response
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM)
    assert json.loads(answer.body)["status"] == 403


def test_a_websocket_without_a_route_is_refused_with_a_problem(shop: Service) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(shop.base_url.replace("http", "ws") + "/nothing", proxy=None)
    assert json.loads(refused.value.response.body)["code"] == "websocket-refused"
    assert shop.http.get("/livez").status_code == 200
    assert "handshake" not in shop.log, "anybody could fill the log"


def test_the_page_of_all_routes_and_the_description_show_them(shop: Service, store: redis_py.Redis) -> None:
    described = shop.http.get("/openapi.json").json()
    create = described["paths"]["/orders"]["post"]
    assert create["tags"] == ["project"]
    assert {"422", "503"} <= set(create["responses"])
    assert list(create["responses"]["422"]["content"]) == ["application/problem+json"]
    for status in ("default", "4XX"):
        answer = described["paths"]["/orders/price"]["get"]["responses"][status]
        assert list(answer["content"]) == ["application/problem+json"]
    page = shop.http.get("/docs").text
    assert "<h2>project</h2>" in page and "/orders/count" in page


def test_the_description_has_the_projects_own_security_beside_the_token(
    guarded_shop: Service, store: redis_py.Redis
) -> None:
    described = guarded_shop.http.get("/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).json()
    assert set(described["components"]["securitySchemes"]) == {"token", "HTTPBasic"}


def test_a_redis_that_is_gone_is_a_503(start_service: Callable[..., Service], redis_server: RedisServer) -> None:
    service = start_service(redis_server.url, config=CONFIG, files=FILES)
    redis_server.kill()
    body = problem(service.http.post("/orders", json={"item": "tea"}), 503, "redis-unavailable")
    assert body["code"] == "UNREACHABLE"
    problem(service.http.get("/orders/count"), 503, "redis-unavailable")


BAD = {
    "web.shp:router": ("", "config.toml:2: api.routers: there is no module 'web.shp'", "did you mean 'web.shop'?"),
    "webb.shop:router": ("", "config.toml:2: api.routers: there is no module 'webb'", "did you mean 'web'?"),
    "web.shop:routr": ("", "config.toml:2: api.routers: there is no 'routr' in ", "did you mean 'router'?"),
    "web.broken:router": ("def x(:\n", "web/broken.py:1: invalid syntax", ""),
    "web.failing:router": (
        "from fastapi import APIRouter\nrouter = APIRouter()\nimport nonsuch\n",
        "web/failing.py:3: ModuleNotFoundError: No module named 'nonsuch'",
        "",
    ),
    "web.wrong:app": (
        "from fastapi import APIRouter, FastAPI\napp = FastAPI()\nrouter = APIRouter()\n",
        "'app' in ",
        "wrong.py is not an APIRouter but a FastAPI; its routers: router",
    ),
    "web.refused:router": (
        "from fastapi import APIRouter\nrouter = APIRouter()\n\n@router.get('/x')\ndef x(y: APIRouter) -> None: ...\n",
        "web/refused.py:4: FastAPIError: Invalid args for response field!",
        "",
    ),
    "web.taken:router": (
        "from fastapi import APIRouter\nrouter = APIRouter(prefix='/v1')\n\n@router.post('/streams/{name}/messages')\n"
        "def x() -> None: ...\n",
        "web/taken.py:4: the path '/v1/streams/{name}/messages' belongs to the HTTP service",
        "",
    ),
    "web.handling:router": (
        "from fastapi import APIRouter\nfrom supervisor import handler\nrouter = APIRouter()\n\n"
        "@handler('orders', group='count')\nasync def count(message: dict[str, str]) -> None: ...\n",
        "web/handling.py:5: api.routers names this module, so workers skip it",
        "move the handler to another module",
    ),
}
#: What `make test` tries: one that needs no import, one that fails at import, one that only the application refuses.
SHORT = ("web.shop:routr", "web.failing:router", "web.taken:router")
#: Found without importing the module, so before a pool starts anything.
UNIMPORTED = ("web.shp:router", "webb.shop:router", "web.shop:routr", "web.broken:router")


def project(folder: Path, router: str) -> None:
    (folder / "web").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    text = BAD[router][0]
    if text:
        (folder / "web" / f"{router.partition(':')[0].partition('.')[2]}.py").write_text(text)
    (folder / "handlers.py").write_text(HANDLERS)
    (folder / "config.toml").write_text(f'[api]\nrouters = ["{router}"]\nbind = "127.0.0.1:{free_port()}"\n')


@pytest.mark.parametrize(
    "router", [router if router in SHORT else pytest.param(router, marks=pytest.mark.long) for router in BAD]
)
def test_a_bad_router_is_named_with_file_and_line(tmp_path: Path, router: str) -> None:
    project(tmp_path, router)
    commands = ["config check", f"api --bind unix:{tmp_path}/http.sock", *(["start"] if router in UNIMPORTED else [])]
    for command in commands:
        result = run(*command.split(), cwd=tmp_path)
        assert result.returncode == 4, (command, result.stderr)
        for part in BAD[router][1:]:
            assert part in result.stderr, command
    assert not (tmp_path / ".supervisor" / "redis").exists()
    assert not (tmp_path / "http.sock").exists()


@pytest.mark.parametrize("router", ["web.shop", "web/shop:router", ":router", "web.shop:"])
def test_a_router_without_module_and_name_is_a_wrong_setting(tmp_path: Path, router: str) -> None:
    (tmp_path / "config.toml").write_text(f'[api]\nrouters = ["{router}"]\n')
    result = run("api", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "config.toml:2: api.routers" in result.stderr and "handlers.http:router" in result.stderr
