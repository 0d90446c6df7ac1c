"""Large messages are read to the end, page by page and by a tail."""

import http.client
import json
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.http.service import Service
from tests.support.servers import RedisServer

MANY = [
    pytest.param(1_000, 100_000, id="1000x100kB", marks=pytest.mark.long),
    pytest.param(100, 10_000_000, id="100x10MB", marks=pytest.mark.long),
    pytest.param(10, 1_000_000, id="10x1MB"),
]
STREAM = "large"


def fill(server: RedisServer, count: int, size: int) -> list[str]:
    """Store the messages, and return their ids."""
    with server.sync(decode_responses=True) as client:
        return [client.xadd(STREAM, {"n": n, "data": "x" * size}) for n in range(count)]


def pages(client: httpx.Client, query: str) -> Iterator[list[dict[str, object]]]:
    """Yield the pages from the address of the first one on."""
    address = f"/v1/streams/{STREAM}/messages?{query}"
    while address:
        answer = client.get(address)
        assert answer.status_code == 200, answer.text[:300]
        found = answer.json()
        yield found["messages"]
        address = found["next"]


@pytest.mark.parametrize(("count", "size"), MANY)
def test_large_messages_are_read_to_the_end(
    redis_server: RedisServer, start_service: Callable[..., Service], count: int, size: int
) -> None:
    ids = fill(redis_server, count, size)
    service = start_service(redis_server.url)
    for query in ("count=1000", "count=1000&reverse=true"):
        found = []
        for page in pages(service.patient, query):
            assert page
            for message in page:
                assert len(message["fields"]["data"]) == size  # type: ignore[index, call-overload]
                found.append(message["id"])
        assert found == (ids if "reverse" not in query else ids[::-1])
    assert tail(service, ids[0], count - 1) == ids[1:]


@pytest.mark.long
def test_large_messages_after_many_small_ones_are_read_to_the_end(
    redis_server: RedisServer, start_service: Callable[..., Service]
) -> None:
    """The size of the small ones says nothing of the large ones."""
    ids = fill(redis_server, 500, 1) + fill(redis_server, 30, 5_000_000)
    service = start_service(redis_server.url)
    found = [message["id"] for page in pages(service.patient, "count=1000") for message in page]
    assert found == ids
    assert tail(service, "0-1", len(ids)) == ids


def tail(service: Service, after: str, count: int) -> list[str]:
    """Follow the stream from that entry on and return the ids of the first `count` messages."""
    parts = urlsplit(service.base_url)
    client = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    client.request("GET", f"/v1/streams/{STREAM}/tail", headers={"last-event-id": after})
    answer = client.getresponse()
    assert answer.status == 200
    found: list[str] = []
    while len(found) < count:
        line = answer.readline()
        assert line, f"it ended after {len(found)} messages"
        if line.startswith(b"data: "):
            found.append(json.loads(line[6:])["id"])
    client.close()
    return found
