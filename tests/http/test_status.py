"""What the service reports of a pool and its groups, and what probes say while parts of it are down."""

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis as redis_py

from tests.http.service import STREAM, browser, problem, timed
from tests.support.faults import scaled
from tests.support.letters import add_dead_letter
from tests.support.pool import Pool
from tests.support.servers import AnyServer, default_flavour, start_server
from tests.support.waiting import eventually

MESSAGES = f"/v1/streams/{STREAM}/messages"
HANDLERS = """
from supervisor import handler

@handler("events:user_created", group="mail", retry_base_s=3600)
async def mail(message: dict[str, str]) -> None:
    if message["n"] == "bad":
        raise ValueError("later")

@handler("events:user_created", group="count")
def count(message: dict[str, str]) -> None: ...
"""
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)+)\})? (\S+)')


@pytest.fixture(scope="module")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AnyServer, Pool]]:
    with start_server(default_flavour(), appendonly=True) as server:
        folder = tmp_path_factory.mktemp("pool")
        with Pool(folder, HANDLERS, redis_url=server.url, workers=2, api=True).start() as pool:
            yield server, pool


@pytest.fixture
def pool(_pair: tuple[AnyServer, Pool]) -> Pool:
    """A pool of two workers with its HTTP service, healthy."""
    return _pair[1]


@pytest.fixture
def server(_pair: tuple[AnyServer, Pool]) -> Any:
    """Its Redis."""
    return _pair[0]


@pytest.fixture
def web(pool: Pool) -> Iterator[httpx.Client]:
    """A client of its service."""
    with browser(pool.base_url) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        eventually(lambda: (health := client.get("/health").json())["state"] == "healthy" and health["groups"])
        yield client


def groups(web: httpx.Client) -> dict[str, dict[str, Any]]:
    return {group["group"]: group for group in web.get("/v1/groups").json()["groups"]}


def until_503(web: httpx.Client, address: str) -> httpx.Response:
    return eventually(lambda: answer if (answer := web.get(address)).status_code == 503 else None)


def metrics(web: httpx.Client) -> dict[str, float]:
    """Name with labels -> value. Fails for a line that Prometheus would not read."""
    answer = web.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, float] = {}
    typed: set[str] = set()
    for line in answer.text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            kinds = {"counter"} if name.endswith("_total") else {"gauge", "histogram"}
            assert kind in kinds
            assert name not in typed
            typed.add(name)
        elif not line.startswith("# HELP "):
            sample = SAMPLE.fullmatch(line)
            assert sample and {sample[1], re.sub("_(bucket|sum|count)$", "", sample[1])} & typed, line
            series = line.rpartition(" ")[0]
            assert series not in found, line
            found[series] = float(sample[3])
    return found


def test_everything_is_healthy(pool: Pool, web: httpx.Client) -> None:
    assert web.get("/livez?verbose").text == "[+]process ok\nok\n"
    assert web.get("/readyz?verbose").text == "[+]redis ok\n[+]workers ok\nok\n"
    assert web.get("/startupz?verbose").text == "[+]startup ok\nok\n"
    for probe in ("/livez", "/readyz", "/startupz"):
        answer = web.get(probe)
        assert (answer.text, answer.headers["cache-control"]) == ("ok", "no-store")


def test_health_is_what_status_prints(pool: Pool, web: httpx.Client) -> None:
    health, status = web.get("/health").json(), pool.status()
    assert list(health) == list(status)
    assert health["state"] == "healthy"
    for key in ("pid", "redis"):
        assert health[key] == status[key]
    assert [list(worker) for worker in health["workers"]] == [list(worker) for worker in status["workers"]]
    workers = web.get("/v1/workers").json()
    assert [(w["slot"], w["pid"], w["state"]) for w in workers["workers"]] == [
        (worker["slot"], worker["pid"], "READY") for worker in status["workers"]
    ]
    assert {service["name"] for service in workers["services"]} == {"keeper", "api"}


def test_groups_streams_and_metrics_follow_what_happens(pool: Pool, server: Any, web: httpx.Client) -> None:
    with server.sync() as client:
        client.xgroup_create(STREAM, "stranger", "0", mkstream=True)
    before = metrics(web)
    answer = web.post(f"{MESSAGES}:batch", json=[{"n": n} for n in range(9)] + [{"n": "bad"}])
    assert answer.status_code == 202
    expected = {
        "mail": {"exists": True, "lag": 0, "pending": 1, "retrying": 1, "dead": 0},
        "count": {"exists": True, "lag": 0, "pending": 0, "retrying": 0, "dead": 0},
    }

    def found() -> dict[str, dict[str, Any]]:
        return {name: {key: group[key] for key in expected["mail"]} for name, group in groups(web).items()}

    eventually(lambda: found() == expected)
    assert groups(web)["count"]["oldest_s"] is None
    [stream] = web.get("/v1/streams").json()["streams"]
    assert (stream["stream"], stream["length"], stream["last_id"]) == (STREAM, 10, answer.json()["ids"][-1])
    assert {group["group"]: group["lag"] for group in stream["groups"]} == {"count": 0, "mail": 0, "stranger": 10}
    printed = json.loads(pool.command("streams", "--json").stdout)
    assert without_ages(printed) == without_ages([stream])

    def settled(outcome: str) -> float:
        return sum(value - before.get(series, 0) for series, value in now.items() if f'outcome="{outcome}"' in series)

    now = eventually(lambda: now if settled_total(now := metrics(web)) == 20 + settled_total(before) else None)
    assert (settled("done"), settled("retry"), settled("dead")) == (19, 1, 0)
    stored = f'supervisor_messages_produced_total{{stream="{STREAM}",outcome="stored"}}'
    assert now[stored] - before.get(stored, 0) == 10
    assert now['supervisor_workers{state="READY"}'] == 2
    assert now['supervisor_state{state="healthy"}'] == now["supervisor_redis_up"] == 1
    assert now[f'supervisor_stream_pending_messages{{stream="{STREAM}",group="mail"}}'] == 1


def settled_total(samples: dict[str, float]) -> float:
    return sum(value for series, value in samples.items() if series.startswith("supervisor_messages_settled_total"))


def without_ages(streams: list[dict[str, Any]]) -> Any:
    return [
        stream | {"groups": [{k: v for k, v in group.items() if k != "oldest_s"} for group in stream["groups"]]}
        for stream in streams
    ]


def test_the_pool_stays_up_while_redis_is_down(pool: Pool, server: Any, web: httpx.Client) -> None:
    def pids() -> list[int]:
        told = web.get("/v1/workers").json()
        return [entry["pid"] for entry in (*told["workers"], *told["services"])]

    before = pids()
    server.kill()
    problem(web.post(MESSAGES, json={"n": 1}), 503, "redis-unavailable")
    told = until_503(web, "/readyz?verbose")
    assert "[-]redis failed: " in told.text and "[+]workers ok" in told.text
    assert eventually(lambda: web.get("/health").json()["state"] == "degraded")
    server.start()
    eventually(lambda: web.get("/readyz").status_code == 200)
    with server.sync() as client:
        entry = web.post(MESSAGES, json={"n": "after"}).json()["id"].encode()
        eventually(lambda: last_delivered(client, "count") == entry)
        eventually(lambda: client.xpending(STREAM, "count")["pending"] == 0)
    assert pids() == before


def last_delivered(client: redis_py.Redis, group: str) -> bytes:
    found: bytes = next(g["last-delivered-id"] for g in client.xinfo_groups(STREAM) if g["name"] == group.encode())
    return found


@pytest.mark.long
def test_an_arbiter_that_hangs_is_told_in_time(pool: Pool, web: httpx.Client) -> None:
    pool.send(signal.SIGSTOP)
    try:
        told = "[+]redis ok\n[-]workers failed: no supervisor answers on"
        eventually(lambda: told in web.get("/readyz?verbose").text)
        for address in ("/readyz", "/health"):
            assert min(timed(web, "GET", address)[0] for _ in range(3)) < scaled(250, pool.started_ms), address
        assert web.post(MESSAGES, json={"n": 1}).status_code == 202
    finally:
        pool.send(signal.SIGCONT)
    eventually(lambda: web.get("/readyz").status_code == 200)


def test_a_key_of_another_type_is_named_by_each_list_and_hides_no_dead_letter(
    http: httpx.Client, store: redis_py.Redis
) -> None:
    add_dead_letter(store, STREAM, "mail", {"n": 1})
    assert http.get("/v1/groups").json()["problems"] == []
    store.delete(STREAM)
    store.set(STREAM, "text")
    for name in ("streams", "groups", "pending"):
        [text] = eventually(lambda of=name: http.get(f"/v1/{of}").json()["problems"])
        assert STREAM in text and "WRONGTYPE" in text
    assert http.get("/v1/dead").json()["total"] == 1


def test_without_a_pool_the_service_speaks_for_itself(http: httpx.Client, store: redis_py.Redis) -> None:
    assert eventually(lambda: http.get("/readyz?verbose").text == "[+]redis ok\nok\n")
    health = eventually(lambda: told if (told := http.get("/health").json())["groups"] else None)
    assert (health["state"], health["pid"], health["reason"]) == ("healthy", None, "no pool on this host")
    assert http.get("/v1/workers").json() == {"state": "healthy", "workers": [], "services": []}

    def known() -> list[tuple[Any, ...]]:
        found = http.get("/v1/groups").json()["groups"]
        return [(group["stream"], group["group"], group["exists"]) for group in found]

    eventually(lambda: known() == [(STREAM, "mail", False)])
    [stream] = http.get("/v1/streams").json()["streams"]
    assert (stream["exists"], stream["length"], stream["first_id"]) == (False, 0, None)
    samples = metrics(http)
    assert samples['supervisor_state{state="healthy"}'] == 1
    assert not any(series.startswith("supervisor_workers") for series in samples)
