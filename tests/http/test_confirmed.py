"""Publishes that wait for replicas or the disk: confirmed, or the answer says that it is stored all the same."""

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.http.service import STREAM, Service, problem
from tests.support.servers import RedisServer, default_flavour
from tests.support.waiting import eventually

MESSAGES = f"/v1/streams/{STREAM}/messages"
CONFIG = "[api]\nwait_timeout_ms = 300\nproduce_timeout_ms = 2000"


@pytest.fixture
def master() -> Iterator[RedisServer]:
    """A server with a port, which a replica can connect to."""
    flavour = default_flavour()
    if not flavour.binary:
        pytest.skip("a replica needs a server of this machine")
    with RedisServer(flavour, tcp=True, options=("--repl-diskless-sync-delay", "0")) as server:
        yield server


@pytest.fixture
def replica(master: RedisServer) -> Iterator[RedisServer]:
    """A replica of `master` that is in step."""
    with RedisServer(default_flavour()) as server, server.sync() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", urlsplit(master.tcp_url).port)
        eventually(lambda: client.info("replication").get("master_link_status") == "up", what="in step")
        yield server
        server.resume()


def confirmed(answer: httpx.Response) -> bool:
    """Whether a publish was confirmed in time, for which a busy machine may be too slow."""
    if answer.status_code != 202:
        problem(answer, 503, "not-confirmed")
    return answer.status_code == 202


def test_a_publish_waits_for_replicas(
    master: RedisServer, replica: RedisServer, start_service: Callable[..., Service]
) -> None:
    http = start_service(master.url, config=CONFIG).http
    for path, body in ((MESSAGES, {"n": 1}), (f"{MESSAGES}:batch", [{"n": 1}, {"n": 2}])):
        headers = {"idempotency-key": path}  # a repeat writes nothing
        eventually(lambda p=path, b=body, h=headers: confirmed(http.post(f"{p}?wait_replicas=1", json=b, headers=h)))
    with replica.sync() as client:
        assert client.xlen(STREAM) == 3
    replica.pause()
    headers = {"idempotency-key": "k"}
    for sent in ({}, headers, headers):  # a repeat writes nothing, and must wait for the first all the same
        refused = http.post(f"{MESSAGES}?wait_replicas=1", json={"n": 4}, headers=sent)
        assert "0 of 1 replicas" in problem(refused, 503, "not-confirmed")["detail"]
    assert http.post(MESSAGES, json={"n": 5}).status_code == 202
    replica.resume()
    eventually(lambda: confirmed(http.post(f"{MESSAGES}?wait_replicas=1", json={"n": 4}, headers=headers)))
    with master.sync() as first, replica.sync() as second:
        assert first.xlen(STREAM) == second.xlen(STREAM) == 6


def test_a_publish_waits_for_the_disk(redis_server: RedisServer, start_service: Callable[..., Service]) -> None:
    http: httpx.Client = start_service(redis_server.url, config=CONFIG).http
    refused = http.post(f"{MESSAGES}?wait_aof=true", json={"n": 1})
    found = problem(refused, 503, "not-confirmed")
    assert found["code"] == "NOTCONFIRMED" and "can't confirm" in found["detail"]
    with redis_server.sync() as client:
        assert client.xlen(STREAM) == 1
        client.config_set("appendfsync", "always")
        client.config_set("appendonly", "yes")
        eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
        knows = bool(client.execute_command("COMMAND INFO", "WAITAOF")[0])
    if knows:
        eventually(lambda: http.post(f"{MESSAGES}?wait_aof=true", json={"n": 2}).status_code == 202)
    for wrong in ("wait_aof=1", "wait_replicas=-1", "wait_replicas=17", "wait_replicas=x"):
        problem(http.post(f"{MESSAGES}?{wrong}", json={"n": 1}), 422, "invalid")
