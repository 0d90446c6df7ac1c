"""Single publishes are quick beside large batches."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from benchmarks.repeated import repeated
from supervisor.publisher import BATCH_MAX
from tests.http.service import STREAM, Service, browser
from tests.support.servers import RedisServer

MESSAGES = f"/v1/streams/{STREAM}/messages"
BATCH = json.dumps([{"number": str(number), "data": "x" * 1_500} for number in range(BATCH_MAX)]).encode()
JSON = {"content-type": "application/json"}
COUNT = 500
EVERY_S = 0.01
#: What a publish may take beside batches; a busy machine adds some times of what one takes there alone.
P99_S = 0.05
SLOWER = 5
ROUNDS = 3


def p99_s(http: httpx.Client) -> float:
    """Publish at a fixed pace; return how long the slowest took, without one in a hundred. Counted from when due."""
    took: list[float] = []
    due_s = time.monotonic()
    for n in range(COUNT):
        time.sleep(max(0.0, due_s - time.monotonic()))
        assert http.post(MESSAGES, json={"n": n}).status_code == 202
        took.append(time.monotonic() - due_s)
        due_s = max(due_s + EVERY_S, time.monotonic())  # one connection: what waits for it is not the service's doing
    return sorted(took)[-COUNT // 100]


@contextmanager
def batches(service: Service, server: RedisServer, statuses: Counter[int]) -> Iterator[None]:
    """Send batches one after the other until the end."""
    with browser(service.base_url) as http, server.sync() as redis:

        def send() -> None:
            statuses[http.post(f"{MESSAGES}:batch", content=BATCH, headers=JSON).status_code] += 1
            redis.unlink(STREAM)

        with repeated(send):
            yield


@pytest.mark.long
def test_small_publishes_are_quick_beside_large_batches(
    redis_server: RedisServer, start_service: Callable[..., Service]
) -> None:
    service = start_service(redis_server.url, config="[api]\nproduce_timeout_ms = 10000")
    found, statuses = [], Counter[int]()
    for _ in range(ROUNDS):
        alone_s = p99_s(service.patient)
        with batches(service, redis_server, statuses):
            beside_s = p99_s(service.patient)
        found.append((alone_s, beside_s))
        if beside_s < P99_S + SLOWER * alone_s:
            break
    else:
        pytest.fail(f"(alone, beside), in seconds: {found}")
    assert statuses[202] > 3 and statuses.keys() == {202}
