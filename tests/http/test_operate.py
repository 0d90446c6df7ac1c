"""Operating a pool over HTTP: roles, commands, their log lines, figures; and what the probes say meanwhile."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.service import STREAM, browser, problem
from tests.support.pool import Pool
from tests.support.servers import AnyServer, default_flavour, start_server
from tests.support.waiting import eventually

TOKEN, READ = "the operator's token", "the token that only looks"
MESSAGES = f"/v1/streams/{STREAM}/messages"
HANDLERS = f"""
from supervisor import Reject, handler

@handler("{STREAM}", group="mail", retry_base_s=3600)
async def mail(message: dict[str, str]) -> None:
    if message["n"] == "bad":
        raise ValueError("later")
    if message["n"] == "reject":
        raise Reject("no")
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool of two workers, with an operator's token and a file with the other one."""
    folder = tmp_path_factory.mktemp("operated")
    (folder / "read_token").write_text(READ)
    config = f'[api]\ntoken = "{TOKEN}"\nread_token_file = "read_token"\n[log]\nformat = "json"\n'
    with (
        start_server(default_flavour()) as server,
        Pool(folder, HANDLERS, redis_url=server.url, workers=2, api=True, config=config).start() as started,
    ):
        yield started


@pytest.fixture
def web(pool: Pool) -> Iterator[httpx.Client]:
    """The operator."""
    with browser(pool.base_url) as client:
        client.headers["authorization"] = f"Bearer {TOKEN}"
        eventually(lambda: client.get("/readyz").status_code == 200)
        yield client


def changes(pool: Pool) -> list[dict[str, Any]]:
    return pool.events("change over HTTP")


def verbose(web: httpx.Client, **query: Any) -> str:
    return web.get("/readyz", params={"verbose": "", **query}).text


def test_pause_resume_scale_and_restart(pool: Pool, web: httpx.Client) -> None:
    before = len(changes(pool))
    paused = web.post("/v1/pool:pause")
    assert (paused.status_code, paused.json()) == (200, {"paused": True})
    assert paused.headers["cache-control"] == "no-store"
    eventually(lambda: "[-]paused failed: " in verbose(web))
    assert web.get("/readyz?exclude=paused&verbose=a&verbose=b").status_code == 200
    told = problem(web.get("/readyz?exclude=redis&exclude=pausd"), 422, "invalid")
    assert told["errors"][0]["parameter"] == "exclude.1" and "'paused'" in told["detail"]
    assert web.post("/v1/pool:resume").json() == {"paused": False}
    eventually(lambda: web.get("/readyz").status_code == 200)
    assert web.post("/v1/pool:scale", json={"workers": 0}).json() == {"workers": 0, "before": 2}
    eventually(lambda: "[-]workers failed: there are none" in verbose(web))
    assert web.post("/v1/pool:scale", json={"workers": 2}).json() == {"workers": 2, "before": 0}
    eventually(lambda: web.get("/readyz").status_code == 200)
    restarted = web.post("/v1/pool:restart", headers={"x-request-id": "why"})
    assert (restarted.status_code, restarted.json()) == (202, {"accepted": True})
    found = eventually(lambda: found if len(found := changes(pool)[before:]) == 5 else None)
    assert [line["action"] for line in found] == [
        "pool:pause", "pool:resume", "pool:scale", "pool:scale", "pool:restart",
    ]  # fmt: skip
    assert {(line["role"], line["client"]) for line in found} == {("operator", "127.0.0.1")}
    assert (found[2]["workers"], found[2]["before"], found[4]["request_id"]) == (0, 2, "why")
    done = eventually(lambda: pool.ask("status")["last_operation"], 60)
    assert done["ok"], done


@pytest.mark.parametrize("body", [{}, {"workers": -1}, {"workers": 257}, {"workers": "2"}, {"workers": 2, "n": 2}, []])
def test_a_wrong_number_of_workers_is_refused(web: httpx.Client, body: Any) -> None:
    problem(web.post("/v1/pool:scale", json=body), 422, "invalid")


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
@pytest.mark.parametrize("address", ["/v1/pool:pause", MESSAGES, f"/v1/streams/{STREAM}/dead:drop", "/no"])
def test_the_other_token_looks_and_changes_nothing(pool: Pool, web: httpx.Client, method: str, address: str) -> None:
    problem(web.request(method, address, headers={"authorization": f"Bearer {READ}"}), 403, "forbidden")
    assert not pool.ask("status")["paused"]


def test_the_other_token_sees_everything(pool: Pool, web: httpx.Client) -> None:
    web.headers["authorization"] = f"Bearer {READ}"
    for address in ("/health", "/metrics", "/v1/groups", "/v1/streams", "/v1/workers", "/v1/dead", "/v1/pending"):
        shown = web.get(address)
        assert (shown.status_code, shown.headers["cache-control"]) == (200, "no-store"), address
        head = web.head(address)
        assert (head.status_code, head.content) == (200, b"")
        assert {**head.headers, "content-length": "", "x-request-id": ""}.keys() == shown.headers.keys()
    assert web.head(f"/v1/streams/{STREAM}/tail").headers["content-type"].startswith("text/event-stream")
    assert web.head("/v1/pool:pause").status_code == 405
    problem(web.get("/no"), 404, "not-found")


def test_a_token_that_was_replaced_in_its_file_is_known_at_once(pool: Pool, web: httpx.Client) -> None:
    file = pool.folder / "read_token"
    web.headers["authorization"] = "Bearer the token of tomorrow"
    assert web.get("/v1/workers").status_code == 401
    file.write_text("the token of tomorrow")
    try:
        eventually(lambda: web.get("/v1/workers").status_code == 200)
    finally:
        file.write_text(READ)
    eventually(lambda: web.get("/v1/workers").status_code == 401)


def test_pending_and_figures_follow_what_happens(pool: Pool, web: httpx.Client) -> None:
    answer = web.post(f"{MESSAGES}:batch", json=[{"n": str(n)} for n in range(8)] + [{"n": "bad"}, {"n": "reject"}])
    waiting, given_up = answer.json()["ids"][8:]

    def pending() -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = web.get(f"/v1/streams/{STREAM}/groups/mail/pending").json()["pending"]
        return shown

    [found] = eventually(lambda: [one for one in pending() if one["attempts"] == 1 and len(pending()) == 1])
    assert (found["id"], found["foreign"]) == (waiting, False)
    [group] = web.get("/v1/pending?count=1").json()["groups"]
    assert (group["stream"], group["group"], [one["id"] for one in group["pending"]]) == (STREAM, "mail", [waiting])
    assert web.get(f"/v1/streams/{STREAM}/groups/nobody/pending").json()["pending"] == []
    labels = f'stream="{STREAM}",group="mail",handler="handlers.mail"'
    wanted = {
        f'supervisor_messages_delivered_total{{{labels},redelivered="false"}}': 10,
        f'supervisor_messages_settled_total{{{labels},outcome="done"}}': 8,
        f'supervisor_messages_settled_total{{{labels},outcome="retry"}}': 1,
        f'supervisor_messages_settled_total{{{labels},outcome="dead"}}': 1,
        f"supervisor_process_duration_seconds_count{{{labels}}}": 10,
        f"supervisor_message_wait_seconds_count{{{labels}}}": 10,
    }
    lines = [f"{name} {value}" for name, value in wanted.items()]
    eventually(lambda: set(lines) <= set(web.get("/metrics").text.splitlines()))
    text = web.get("/metrics").text
    assert (
        'supervisor_http_requests_total{method="POST",route="/v1/streams/{stream}/messages:batch",status="202"} '
        in text
    )
    assert f"{STREAM}" not in "".join(line for line in text.splitlines() if line.startswith("supervisor_http"))
    assert web.delete(f"/v1/streams/{STREAM}/dead/{given_up}").status_code == 204
    last = eventually(lambda: changes(pool)[-1] if changes(pool)[-1]["action"] == "dead:drop" else None)
    assert (last["stream"], last["id"]) == (STREAM, given_up)


def test_a_frozen_arbiter_carries_out_later_what_it_was_sent(pool: Pool, web: httpx.Client) -> None:
    pool.send(signal.SIGSTOP)
    try:
        told = problem(web.post("/v1/pool:pause"), 503, "outcome-unknown")
    finally:
        pool.send(signal.SIGCONT)
    assert "`paused` of /health" in told["detail"]
    eventually(lambda: web.get("/health").json()["paused"])
    assert web.post("/v1/pool:resume").json() == {"paused": False}


def test_a_service_without_a_pool_operates_nothing(http: httpx.Client) -> None:
    for command in ("pause", "resume", "restart"):
        problem(http.post(f"/v1/pool:{command}"), 503, "no-pool")
    problem(http.post("/v1/pool:scale", json={"workers": 1}), 503, "no-pool")


QUICK = ("/readyz", "/health", "/metrics", "/livez")


def seconds(web: httpx.Client, address: str) -> float:
    """The shortest time of some requests."""
    return min(web.get(address).elapsed.total_seconds() for _ in range(5))


@pytest.mark.timeout(400)  # with many workers
@pytest.mark.parametrize(("workers", "rounds"), [(2, 4), pytest.param(128, 60, marks=pytest.mark.long)])
def test_an_idle_pool_is_always_up(tmp_path: Path, redis_server: AnyServer, workers: int, rounds: int) -> None:
    """Each scrape and each probe is right, and quick while Redis is frozen."""
    with (
        Pool(tmp_path / "many", HANDLERS, redis_url=redis_server.url, workers=workers, api=True) as pool,
        browser(pool.base_url) as web,
    ):
        pool.start(limit_s=120)
        eventually(lambda: web.get("/readyz").status_code == 200, 120)
        ready = f'supervisor_workers{{state="READY"}} {workers}'
        eventually(lambda: ready in web.get("/metrics").text and web.get("/v1/groups").status_code == 200, 120)
        for _ in range(rounds):
            text = web.get("/metrics").text
            assert "supervisor_redis_up 1" in text
            assert ready in text
            assert {web.get(address).status_code for address in ("/readyz", "/health", "/v1/groups")} == {200}
            time.sleep(0.5)  # the pace of the probes
        usual_s = {address: seconds(web, address) for address in QUICK}
        redis_server.pause()
        try:
            eventually(lambda: "supervisor_redis_up 0" in web.get("/metrics").text)
            for address in QUICK:
                assert seconds(web, address) < 0.1 + 3 * usual_s[address], address
        finally:
            redis_server.resume()
