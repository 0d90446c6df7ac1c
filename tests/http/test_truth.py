"""Redis is killed and frozen under load: what was answered 202 is stored, and what was refused is not."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.http.service import STREAM, Service
from tests.support.faults import scaled

#: Requests at the same time; more of them wait for their turn.
CONNECTIONS = 200
#: Within this time 99 of 100 refusals are sent, on a machine that has nothing else to do.
REFUSED_WITHIN_MS = 300
REFUSED = frozenset({"redis-unavailable", "redis-refused", "busy"})


class Answer(NamedTuple):
    """What one publish was answered."""

    number: int
    #: 202, or the kind of the problem.
    kind: str
    ms: float


class Client:
    """One keep-alive connection."""

    def __init__(self, base_url: str) -> None:
        self._host, self._port = urlsplit(base_url).hostname, urlsplit(base_url).port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def publish(self, number: int) -> Answer:
        """Publish one message."""
        reader, writer = self._streams = self._streams or await asyncio.open_connection(self._host, self._port)
        body = json.dumps({"n": number}).encode()
        head = f"POST /v1/streams/{STREAM}/messages HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n"
        began_s = time.perf_counter()
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        found = json.loads(await reader.readexactly(int(length.partition(b":")[2])))
        kind = "202" if answer[9:12] == b"202" else found["type"].rpartition("/")[2]
        return Answer(number, kind, (time.perf_counter() - began_s) * 1000)

    def close(self) -> None:
        """Close the connection."""
        if self._streams:
            self._streams[1].close()


async def publish_at(base_url: str, rate: float, seconds: float) -> list[Answer]:
    """The answers to publishes at fixed times."""
    # In turn, so that none of them is idle for so long that the service closes it.
    idle: asyncio.Queue[Client] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(Client(base_url))

    async def one(number: int) -> Answer:
        client = await idle.get()
        answer = await client.publish(number)
        idle.put_nowait(client)
        return answer

    begin_s, tasks = time.perf_counter(), []
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, begin_s + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number)))
    answers = await asyncio.gather(*tasks)
    while not idle.empty():
        idle.get_nowait().close()
    return answers


async def harm(server: Any, seed: int, seconds: float) -> None:
    """Freeze and kill the server now and then; it runs at the end."""
    rng, until_s = random.Random(seed), time.perf_counter() + seconds
    while time.perf_counter() < until_s:
        await asyncio.sleep(rng.uniform(0.1, 0.5))
        if rng.random() < 0.7:
            server.pause()
            await asyncio.sleep(rng.uniform(0.05, 0.6))
            server.resume()
        else:
            server.kill()
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            await asyncio.to_thread(server.start)


@pytest.mark.parametrize(
    ("rate", "seconds", "seed"),
    [(300, 3, 1), *(pytest.param(rate, 10, seed, marks=pytest.mark.long) for rate in (300, 1500) for seed in range(5))],
)
def test_no_answer_is_wrong_while_redis_is_killed_and_frozen(
    durable_server: Any, start_service: Callable[..., Service], rate: float, seconds: float, seed: int
) -> None:
    service = start_service(durable_server.url)

    async def both() -> list[Answer]:
        publishing = asyncio.create_task(publish_at(service.base_url, rate, seconds))
        await harm(durable_server, seed, seconds)
        return await publishing

    answers = asyncio.run(both())
    with durable_server.sync(decode_responses=True) as client:
        stored = Counter(int(fields["n"]) for _, fields in client.xrange(STREAM))
    counts = Counter(answer.kind for answer in answers)
    assert counts["202"] and sum(counts[kind] for kind in REFUSED) and counts["outcome-unknown"], counts
    assert not set(counts) - REFUSED - {"202", "outcome-unknown"}, counts
    assert not [answer for answer in answers if answer.kind == "202" and answer.number not in stored]
    assert not [answer for answer in answers if answer.kind in REFUSED and answer.number in stored]
    assert max(stored.values()) == 1
    refused_ms = sorted(answer.ms for answer in answers if answer.kind != "202")
    assert refused_ms[int(len(refused_ms) * 0.99)] < scaled(REFUSED_WITHIN_MS, service.started_ms)
