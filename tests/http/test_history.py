"""Reading history over HTTP: ranges, pages, single messages."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as redis_py

from api import service as api_service
from api.problems import Problem
from supervisor.settings.load import load
from tests.http.service import STREAM, problem
from tests.support.waiting import eventually_async

MESSAGES = f"/v1/streams/{STREAM}/messages"
HIGHEST = "18446744073709551615-18446744073709551615"


@pytest.fixture
def history(store: redis_py.Redis) -> list[str]:
    """Ten entries, two a millisecond: 1-0, 1-1, 2-0 ... 5-1; their ids."""
    return [store.xadd(STREAM, {"n": n}, id=f"{n // 2 + 1}-{n % 2}") for n in range(10)]


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [message["id"] for message in answer.json()["messages"]]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({}, slice(None)),
        ({"start": "2"}, slice(2, None)),
        ({"start": "2-1", "end": "4-0"}, slice(3, 7)),
        ({"start": "(2-1", "end": "(4-0"}, slice(4, 6)),
        ({"end": "2"}, slice(0, 4)),
        ({"start": "-", "end": "+", "count": "3"}, slice(0, 3)),
        ({"reverse": "true"}, slice(None, None, -1)),
        ({"reverse": "true", "start": "2-1", "end": "4-0", "count": "2"}, slice(6, 4, -1)),
        ({"start": "6"}, slice(0, 0)),
    ],
    ids=str,
)
def test_a_range(http: httpx.Client, history: list[str], query: dict[str, str], wanted: slice) -> None:
    assert ids(http.get(MESSAGES, params=query)) == history[wanted]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("count", [3, 5, 10])
def test_next_leads_through_all_of_it_once(http: httpx.Client, history: list[str], count: int, reverse: bool) -> None:
    pages: list[list[str]] = []
    address = f"{MESSAGES}?start=1-1&count={count}&reverse={reverse}"
    while address:
        answer = http.get(address)
        pages.append(ids(answer))
        address = answer.json()["next"]
    assert [entry for page in pages for entry in page] == (history[:0:-1] if reverse else history[1:])
    assert all(len(page) == count for page in pages[:-1])
    assert pages[-1]


def test_fields_come_as_they_were_stored(http: httpx.Client, store: redis_py.Redis) -> None:
    store.xadd(STREAM, {"text": "ä\n", "json": '{"a":1}', b"\xffraw": b"\xfe"}, id="1-1")
    shown = {"text": "ä\n", "json": '{"a":1}', "\\xffraw": "\\xfe"}
    assert http.get(MESSAGES).json() == {"messages": [{"id": "1-1", "fields": shown}], "next": None}
    assert http.get(f"{MESSAGES}/1-1").json() == {"id": "1-1", "fields": shown}


def test_one_message_by_its_id(http: httpx.Client, history: list[str]) -> None:
    assert http.get(f"{MESSAGES}/3-1").json() == {"id": "3-1", "fields": {"n": "5"}}
    assert http.get(f"{MESSAGES}/3").json()["id"] == "3-0"
    found = problem(http.get(f"{MESSAGES}/3-2"), 404, "not-found")
    assert "3-2" in found["detail"]
    problem(http.get("/v1/streams/other/messages/3-0"), 404, "not-found")


def test_nothing_follows_the_highest_id(http: httpx.Client, history: list[str], store: redis_py.Redis) -> None:
    store.xadd(STREAM, {"n": "last"}, id=HIGHEST)
    assert http.get(MESSAGES, params={"start": f"({HIGHEST}"}).json() == {"messages": [], "next": None}
    assert ids(http.get(MESSAGES)) == [*history, HIGHEST]
    assert ids(http.get(MESSAGES, params={"end": f"({HIGHEST}", "reverse": "true"})) == history[::-1]


def test_a_stream_that_does_not_exist_is_empty(http: httpx.Client, store: redis_py.Redis) -> None:
    assert http.get("/v1/streams/none/messages").json() == {"messages": [], "next": None}
    assert store.dbsize() == 0


@pytest.mark.parametrize(
    "query",
    [
        {"start": "yesterday"}, {"end": "1-2-3"}, {"start": "$"}, {"start": "18446744073709551616"}, {"end": "(-"},
        {"count": "0"}, {"count": "1001"}, {"count": "many"}, {"reverse": "likely_cause"},
    ],
    ids=str,
)  # fmt: skip
def test_a_range_that_can_not_be_meant_is_refused(http: httpx.Client, query: dict[str, Any]) -> None:
    found = problem(http.get(MESSAGES, params=query), 422, "invalid")
    assert [error["parameter"] for error in found["errors"]] == list(query)


@pytest.mark.parametrize("entry", ["latest", "1-", "-1", "1-18446744073709551616", "1_000", "٣"])
def test_an_id_that_is_none_is_refused(http: httpx.Client, entry: str) -> None:
    problem(http.get(f"{MESSAGES}/{entry}"), 422, "invalid")


async def test_many_reads_leave_connections_for_the_state_of_redis(
    redis: Any, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERVISOR_REDIS__URL", redis_url)
    (tmp_path / "config.toml").write_text("[api]\nproduce_timeout_ms = 10000\n")
    service = api_service.Service(load(tmp_path / "config.toml"))
    reads = [asyncio.create_task(service.read(lambda client: client.blpop("list", 4))) for _ in range(150)]

    async def blocked() -> bool:
        return int((await redis.info("clients"))["blocked_clients"]) >= api_service.READS_MAX

    await eventually_async(blocked)
    finding, late = await service._would_write()
    assert (finding.error, late) == ("", False)
    monkeypatch.setattr(api_service, "READ_WAIT_S", 0.05)
    with pytest.raises(Problem, match="32 reads of history"):
        await service.read(lambda client: client.ping())
    await redis.rpush("list", *range(len(reads)))
    assert all(await asyncio.gather(*reads))
    await service.close()
