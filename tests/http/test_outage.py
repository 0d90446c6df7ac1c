"""Redis is killed, frozen, full, read-only or not there yet: 503 in time, and as before when it is back."""

import asyncio
import random
import statistics
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.http.service import STREAM, Service, example, problem, timed
from tests.support.faults import scaled
from tests.support.proxy import Proxy
from tests.support.servers import AnyServer, default_flavour, start_server
from tests.support.waiting import eventually

#: The contract, in milliseconds, of a machine that has nothing else to do: see `scaled`.
LIMIT_MS = 250
TIMES = 3
MESSAGES = f"/v1/streams/{STREAM}/messages"
#: Address, body, whether it carries a key.
WRITES: tuple[tuple[str, Any, bool], ...] = (
    (MESSAGES, {"n": 1}, False),
    (MESSAGES, {"n": 1}, True),
    (f"{MESSAGES}:batch", [{"n": 1}, {"n": 2}], False),
    ("/users", {"email": "ada@example.com"}, False),
    ("/v1/schedules/nightly:run", None, False),
)
SCHEDULE = """
[schedule."nightly"]
stream = "reports"
cron = "0 3 * * *"
fields = { kind = "nightly" }
"""
READS = (
    MESSAGES, f"{MESSAGES}/1-1", "/users", "/users/1", "/users/registrations", "/v1/streams", "/v1/groups",
    "/v1/pending", f"/v1/streams/{STREAM}/groups/email_workers/pending", "/v1/dead", f"/v1/streams/{STREAM}/dead",
    f"/v1/streams/{STREAM}/groups/email_workers/dead/1-1", f"/v1/streams/{STREAM}/groups/email_workers/dead?text=x",
    f"{MESSAGES}/1-1/explain", "/v1/later", f"/v1/streams/{STREAM}/later/1-1",
)  # fmt: skip
#: They wait for nothing.
PROBE_LIMIT_MS = 100
TAIL = f"/v1/streams/{STREAM}/tail"
#: Stored by WRITES once.
STORED = 5


def options() -> dict[str, Any]:
    """The shipped example with a schedule."""
    shipped = example()
    return {**shipped, "config": shipped["config"] + SCHEDULE}


@pytest.fixture(scope="module")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AnyServer, Service]]:
    with (
        start_server(default_flavour()) as server,
        Service(tmp_path_factory.mktemp("outage"), server.url, **options()) as service,
    ):
        yield server, service


@pytest.fixture
def server(_pair: tuple[AnyServer, Service]) -> AnyServer:
    """A server that each test leaves as it found it: running, and empty at first."""
    with _pair[0].sync() as client:
        client.flushall()
    return _pair[0]


@pytest.fixture
def service(_pair: tuple[AnyServer, Service], server: AnyServer) -> Service:
    """Its service, which works."""
    check_works(_pair[1])
    return _pair[1]


def write(http: httpx.Client, address: str, body: Any, with_key: bool) -> tuple[float, httpx.Response]:
    """(milliseconds, answer); each time another key, since one that was used is answered by a full Redis too."""
    headers = {"idempotency-key": uuid.uuid4().hex} if with_key else {}
    return timed(http, "POST", address, json=body, headers=headers)


def in_time(
    service: Service, ask: Callable[[], tuple[float, httpx.Response]], limit_ms: float = LIMIT_MS
) -> list[httpx.Response]:
    """The answers of TIMES times; half of them within the limit."""
    took_ms, answers = zip(*(ask() for _ in range(TIMES)), strict=True)
    limit_ms = scaled(limit_ms, service.started_ms)
    assert statistics.median(took_ms) < limit_ms, (answers[0].request.url.path, took_ms, limit_ms)
    return list(answers)


def check_refused(
    service: Service, *kinds: str, code: str, reads: bool = True, http: httpx.Client | None = None
) -> None:
    """Every write, and every read, is refused in time with one of these problems; several at once."""

    def check(ask: Callable[[], tuple[float, httpx.Response]]) -> None:
        for answer in in_time(service, ask):
            kind = answer.json()["type"].rpartition("/")[2]
            assert kind in kinds
            assert problem(answer, 503, kind)["code"] == code

    with ThreadPoolExecutor(16) as threads:
        done = [threads.submit(check, lambda w=words: write(http or service.http, *w)) for words in WRITES]
        for address in (*READS, TAIL) if reads else ():
            done.append(threads.submit(check, lambda a=address: timed(http or service.http, "GET", a)))
        for one in done:
            one.result()


def check_works(service: Service) -> None:
    """Check that everything works again soon."""
    eventually(lambda: service.http.get("/readyz").status_code == 200)
    eventually(lambda: service.http.get("/v1/groups").status_code == 200)
    for words in WRITES:
        assert write(service.patient, *words)[1].is_success
    for address in READS:
        expected = 404 if "/1-1" in address else 200
        eventually(lambda a=address, e=expected: service.http.get(a).status_code == e, what=f"{address} answers")


def not_ready(service: Service) -> str:
    """Wait until /readyz says so; its reasons."""

    def reasons() -> str:
        answer = service.http.get("/readyz?verbose")
        return answer.text if answer.status_code == 503 else ""

    return eventually(reasons)


def test_a_killed_redis_is_a_503_at_once_and_forgotten_when_it_is_back(server: Any, service: Service) -> None:
    server.kill()
    check_refused(service, "redis-unavailable", code="UNREACHABLE", reads=False)
    assert "[-]redis failed: " in not_ready(service)
    eventually(lambda: service.http.get("/health").status_code == 503)
    assert service.http.get("/health").json()["state"] == "down"
    assert "supervisor_redis_up 0" in service.http.get("/metrics").text
    assert (service.http.get("/livez").status_code, service.http.get("/startupz").status_code) == (200, 200)
    check_refused(service, "redis-unavailable", code="UNREACHABLE")
    server.start()
    check_works(service)
    with server.sync() as client:
        assert client.xlen(STREAM) == STORED, "what was refused is stored later"


def test_a_frozen_redis_is_a_503_in_time(server: Any, service: Service) -> None:
    def first_refusal() -> float:
        ms, answer = timed(service.http, "GET", "/health")
        return ms if answer.status_code == 503 else 0

    server.pause()
    try:
        check_refused(service, "outcome-unknown", "redis-unavailable", code="UNREACHABLE", reads=False)
        # The first request after the snapshot is too old.
        assert eventually(first_refusal) < scaled(LIMIT_MS, service.started_ms)
        assert service.http.get("/health").json()["state"] == "down"
        check_refused(service, "outcome-unknown", "redis-unavailable", code="UNREACHABLE")
        assert "[-]redis failed: no answer in time" in not_ready(service)
        for address in ("/livez", "/readyz", "/health", "/metrics"):
            in_time(service, lambda a=address: timed(service.http, "GET", a), PROBE_LIMIT_MS)
    finally:
        server.resume()
    check_works(service)


def test_a_lost_answer_is_not_stored_twice_under_its_key(server: Any, service: Service) -> None:
    def publish() -> httpx.Response:
        return service.http.post(MESSAGES, json={"n": "once"}, headers={"idempotency-key": "k"})

    server.pause()
    try:
        found = problem(publish(), 503, "outcome-unknown")
        assert "Idempotency-Key" in service.http.get(found["type"]).text
    finally:
        server.resume()
    answer = eventually(lambda: answer if (answer := publish()).status_code == 202 else None)
    assert answer is not None
    with server.sync(decode_responses=True) as client:
        assert [entry for entry, fields in client.xrange(STREAM) if fields.get("n") == "once"] == [answer.json()["id"]]


def test_a_full_redis_takes_no_writes_still_reads_and_says_why(server: Any, service: Service) -> None:
    with server.sync() as client:
        client.config_set("maxmemory", 1)
        try:
            check_refused(service, "redis-refused", code="OOM", reads=False, http=service.patient)
            assert "[-]redis failed: OOM" in not_ready(service)
            assert len(service.patient.get(MESSAGES).json()["messages"]) == STORED == client.xlen(STREAM)
        finally:
            client.config_set("maxmemory", 0)
    check_works(service)


def test_it_starts_without_redis_and_is_ready_when_it_comes(
    redis_server: Any, start_service: Callable[..., Service]
) -> None:
    redis_server.kill()
    service = start_service(redis_server.url, **options())
    answers = {probe: service.http.get(probe).status_code for probe in ("/livez", "/readyz", "/startupz")}
    assert answers == {"/livez": 200, "/readyz": 503, "/startupz": 503}
    check_refused(service, "redis-unavailable", code="UNREACHABLE")
    redis_server.start()
    eventually(lambda: service.http.get("/startupz").status_code == 200)
    check_works(service)


def test_a_silent_redis_hides_no_workers(redis_server: Any, start_service: Callable[..., Service]) -> None:
    """Also when nothing is known of it, because it has been silent since the start."""
    redis_server.pause()
    try:
        service = start_service(redis_server.url, config="[api]\nproduce_timeout_ms = 10", ready=False)
        eventually(lambda: service.http.get("/livez").status_code == 200)
        answer = service.http.get("/v1/workers")
        assert (answer.status_code, answer.json().get("workers")) == (200, [])
    finally:
        redis_server.resume()


def test_resets_of_resting_connections_are_no_errors(redis_server: Any, start_service: Callable[..., Service]) -> None:
    # Resets are the point here, not times.
    given = {**options(), "config": "[api]\nproduce_timeout_ms = 10000\n" + options()["config"].replace("[api]", "")}
    with Proxy(redis_server.url) as proxy:
        service = start_service(proxy.url, **given)
        check_works(service)
        for _ in range(8):
            assert proxy.reset() >= 1
            for address in READS:
                assert service.patient.get(address).status_code in {200, 404}, address
            for words in WRITES:
                assert write(service.http, *words)[1].is_success
        assert proxy.did["reset"] >= 16


def test_a_page_takes_one_command(redis_server: Any, start_service: Callable[..., Service]) -> None:
    """A slow way to Redis is paid once for each page."""
    with Proxy(redis_server.url) as proxy, redis_server.sync() as client:
        service = start_service(proxy.url, config="[api]\nproduce_timeout_ms = 10000")
        ids = [client.xadd(STREAM, {"n": n}).decode() for n in range(300)]
        eventually(lambda: len(service.http.get(f"{MESSAGES}?count=1000").json()["messages"]) == 300)
        proxy.set(latency_s=0.1)
        took_ms, answer = timed(service.http, "GET", f"{MESSAGES}?count=1000")
        assert [message["id"] for message in answer.json()["messages"]] == ids
        assert took_ms < 300 * 100 / 2, "one command for each message would take 30 s"
        proxy.set(latency_s=0)


def test_tails_whose_clients_leave_at_any_moment_leave_no_connection(
    redis_server: Any, start_service: Callable[..., Service]
) -> None:
    service = start_service(redis_server.url, **options())
    check_works(service)
    rng, at_once = random.Random(1), 20
    with redis_server.sync() as client:
        before = {row["id"] for row in client.client_list()}

        def left() -> list[dict[str, str]]:
            """Without those of the service itself: it asks where each tail begins, and how Redis is."""
            new = [row for row in client.client_list() if row["id"] not in before]
            own = [row for row in new if row["cmd"].startswith(("xinfo", "eval"))]
            assert len(own) <= 2 * at_once
            return [row for row in new if row not in own]

        async def follow(limits: asyncio.Semaphore) -> int:
            async with limits, httpx.AsyncClient(base_url=service.base_url, trust_env=False, verify=False) as http:
                try:
                    async with asyncio.timeout(rng.random() * 0.1), http.stream("GET", TAIL) as answer:
                        async for _ in answer.aiter_lines():
                            pass
                except (TimeoutError, httpx.HTTPError):
                    return 1
            return 0

        async def follow_all() -> int:
            limits = asyncio.Semaphore(at_once)
            return sum(await asyncio.gather(*(follow(limits) for _ in range(100))))

        assert asyncio.run(follow_all()) == 100, "all of them left by themselves"
        assert service.http.get("/livez").status_code == 200
        eventually(lambda: not left(), 30, what="no connection of a tail is left")
