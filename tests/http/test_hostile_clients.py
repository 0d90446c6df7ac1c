"""What anybody who reaches the port may do to it: the service stays small, quick and in order."""

import contextlib
import functools
import gzip
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import redis as redis_py

from tests.http.service import STREAM, Service, problem
from tests.support.unix_http import unix_browser
from tests.support.waiting import eventually

TOKEN = "only-for-this-test"
BEARER = f"authorization: Bearer {TOKEN}\r\n".encode()
MESSAGES = f"/v1/streams/{STREAM}/messages"
BATCH = f"POST {MESSAGES}:batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n".encode()
#: The times of the service are cut short by a module of the project, which its process imports.
SHORT = """
from fastapi import APIRouter
from supervisor_api.connections import LIMITS

LIMITS.head_s = LIMITS.body_grace_s = LIMITS.idle_s = 1.0
router = APIRouter()
"""
MB = 1_000_000
#: Any request that held the service for as long as these did before there were limits breaks it.
LIVEZ_S = 3.0
#: The same for the long form, without the time for which this process itself had to wait.
LIVEZ_LONG_S = 0.3
#: When every connection whose head is not complete has ended, by the limits of the service as it is.
HEADS_GONE_S = 15.0
GROWTH_BYTES = 100 * MB


@pytest.fixture(scope="module")
def guarded(_shared: tuple[object, Service], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a token and short times."""
    url = _shared[0].url  # type: ignore[attr-defined]
    config = f'[api]\ntoken = "{TOKEN}"\nrouters = ["short:router"]'
    with Service(tmp_path_factory.mktemp("hostile"), url, config=config, files={"short.py": SHORT}) as service:
        yield service


class Watch:
    """Asks `/livez` on new connections and measures the service's memory, until it is stopped."""

    def __init__(self, service: Service) -> None:
        self._address = address(service)
        self._memory = psutil.Process(service.process.pid).memory_info
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._before = self._memory().rss
        self.answers: list[float] = []
        #: For how long it did not run when it was due, which the machine is to blame for.
        self.late_s = 0.0
        self.failures: list[str] = []
        self.growth_bytes = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            due_s = time.monotonic() + 0.02
            if self._stop.wait(0.02):
                return
            began_s = time.monotonic()
            self.late_s = max(self.late_s, began_s - due_s)
            try:
                with socket.create_connection(self._address, timeout=30) as client:
                    client.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    if not client.recv(1000).startswith(b"HTTP/1.1 200"):
                        self.failures.append("not 200")
            except OSError as error:
                self.failures.append(repr(error))
            self.answers.append(time.monotonic() - began_s)
            self.growth_bytes = max(self.growth_bytes, self._memory().rss - self._before)


def address(service: Service) -> tuple[str, int]:
    parts = urlsplit(service.base_url)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


def pour(service: Service, begin: bytes, piece: bytes, size: int, patience_s: float = 30) -> bytes:
    """Send the beginning and then the piece again and again, without reading; then return what came back."""
    with socket.create_connection(address(service), timeout=patience_s) as client:
        with contextlib.suppress(OSError):
            client.sendall(begin)
            for _ in range(size // len(piece)):
                client.sendall(piece)
        found = b""
        with contextlib.suppress(OSError):
            while part := client.recv(65536):
                found += part
                if len(found) > 10_000:
                    break
        return found


def endless_line(service: Service, size: int = 30 * MB) -> None:
    pour(service, b"GET / HTTP/1.1\r\nx: ", b"x" * 100_000, size)


def endless_headers(service: Service) -> None:
    pour(service, b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 10_000, 10 * MB)


def endless_trailers(service: Service) -> None:
    pour(service, b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 10_000, 10 * MB)


def endless_extension(service: Service) -> None:
    pour(service, b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;", b"x" * 100_000, 10 * MB)


def pipeline(service: Service, size: int = 10 * MB) -> None:
    pour(service, b"", b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" * 3_000, size, patience_s=1)
    pour(service, b"", b"GET /health HTTP/1.1\r\nhost: x\r\n" + BEARER + b"\r\n", 2 * MB, patience_s=1)


def long_path(service: Service) -> None:
    path = b"/v1/streams/" + b"groups//" * 4_000 + b"dead"
    answer = pour(service, b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n" + BEARER + b"\r\n", b"\r\n", 0)
    assert answer.startswith(b"HTTP/1.1 4"), answer[:100]


def large_array(service: Service) -> None:
    for body, more, expected in (
        (b"[" + b"{}," * 5 * MB + b"{}]", b"", b"422"),
        (b'[{"a":[' + b"[]," * 4 * MB + b"0]}]", b"", b"422"),
        (gzip.compress(bytes(50 * MB), 1), b"content-encoding: gzip\r\n", b"413"),
    ):
        head = BATCH + BEARER + more + b"content-length: %d\r\n\r\n" % len(body)
        answer = pour(service, head, body, len(body))
        assert answer[9:12] == expected, answer[:300]


def wrong_tokens(service: Service) -> None:
    began_s = time.monotonic()
    one = b"GET /health HTTP/1.1\r\nhost: x\r\nauthorization: Bearer wrong\r\n"
    answer = pour(service, one + b"\r\n" + one + b"connection: close\r\n\r\n", b"x", 0)
    assert answer.count(b"HTTP/1.1 401") == 2
    assert time.monotonic() - began_s >= 1


def nonsense(service: Service) -> None:
    for _ in range(20):
        assert pour(service, b"\x16\x03\x01\x02\x00\r\n\r\n", b"\r\n", 0).startswith(b"HTTP/1.1 400")


ATTACKS: tuple[Callable[[Service], None], ...] = (
    endless_line, endless_headers, endless_trailers, endless_extension, pipeline, long_path, large_array, wrong_tokens,
    nonsense,
)  # fmt: skip


@contextlib.contextmanager
def silent(service: Service) -> Iterator[None]:
    """Open connections that send half of something; at the end, wait until the service has ended each one."""
    halves = [
        b"", b"GET", b"GET / HTTP/1.1\r\nhost: ", BATCH + b"content-length: 100\r\n\r\n{",
        BATCH + BEARER + b"content-length: 100\r\n\r\n{", b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n",
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address(service), 30)) for _ in range(120)]
        for at, client in enumerate(clients):
            client.sendall(halves[at % len(halves)])
        yield
        for client in clients:
            while client.recv(65536):
                pass


def attack(service: Service, *more: Callable[[Service], None]) -> None:
    """Do all of it at once."""
    attacks = (*ATTACKS, *more)
    with ThreadPoolExecutor(len(attacks)) as threads:
        for done in [threads.submit(kind, service) for kind in attacks]:
            done.result()


def check(service: Service, watch: Watch, since_s: float) -> None:
    """The service has stayed small, answers, and its log is short."""
    assert watch.failures == [] and len(watch.answers) > 20
    assert watch.growth_bytes < GROWTH_BYTES
    lines = [json.loads(line) for line in service.log.splitlines()]
    counts = Counter((line["event"], line.get("kind")) for line in lines)
    kinds = {kind for event, kind in counts if event == "request refused"}
    assert kinds >= {"head-too-large", "bad-request", "unauthorized", "too-slow"}
    assert max(counts.values()) <= 1 + (time.monotonic() - since_s) / 5, counts
    answer = service.patient.post(MESSAGES, json={"n": 1}, headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 202


def test_a_service_withstands_hostile_clients(guarded: Service) -> None:
    began_s = time.monotonic()
    with Watch(guarded) as watch, silent(guarded):
        attack(guarded)
    assert max(watch.answers) < LIVEZ_S + 2 * watch.late_s
    check(guarded, watch, began_s)


@pytest.mark.long
def test_a_service_withstands_hostile_clients_by_its_own_limits(
    start_service: Callable[..., Service], redis_url: str
) -> None:
    """More of everything, against a service whose times are not cut short."""
    service = start_service(redis_url, config=f'[api]\ntoken = "{TOKEN}"')
    began_s = time.monotonic()
    with Watch(service) as watch:
        with silent(service):
            sent_s = time.monotonic()
            attack(
                service,
                functools.partial(endless_line, size=114 * MB),
                functools.partial(pipeline, size=33 * MB),
                long_path,
                large_array,
            )
            attacked_s = time.monotonic()
        assert time.monotonic() < max(sent_s + HEADS_GONE_S, attacked_s + 5) + watch.late_s
    check(service, watch, began_s)
    assert max(watch.answers) < max(LIVEZ_LONG_S, service.started_ms / 1000) + 2 * watch.late_s


def test_probes_are_answered_when_descriptors_are_few(start_service: Callable[..., Service], redis_url: str) -> None:
    service = start_service(redis_url)
    process = psutil.Process(service.process.pid)
    limit = process.num_fds() + 60
    process.rlimit(psutil.RLIMIT_NOFILE, (limit, limit))
    with contextlib.ExitStack() as stack:

        def flood() -> bool:
            """Return whether the service has seen its new limit: it ends connections that wait."""
            stack.enter_context(socket.create_connection(address(service)))
            return "connection dropped" in service.log

        eventually(flood)
        for _ in range(100):
            stack.enter_context(socket.create_connection(address(service)))
        for probe in ("/livez", "/readyz"):
            assert httpx.get(service.base_url + probe, timeout=30, trust_env=False, verify=False).status_code == 200
        assert process.num_fds() < limit
    assert service.patient.post(MESSAGES, json={"n": 1}).status_code == 202


def test_gzip_bodies_are_unpacked_within_the_limit(http: httpx.Client, store: redis_py.Redis) -> None:
    def send(body: bytes, encoding: str = "gzip") -> httpx.Response:
        headers = {"content-type": "application/json", "content-encoding": encoding}
        return http.post(f"{MESSAGES}:batch", content=body, headers=headers)

    assert send(gzip.compress(json.dumps([{"n": 1}, {"n": 2}]).encode())).json()["count"] == 2
    assert store.xlen(STREAM) == 2
    problem(send(gzip.compress(bytes(20 * MB))), 413, "body-too-large")
    problem(send(b"{}"), 400, "bad-request")
    assert problem(send(b"{}", "br"), 415, "media-type") and send(b"{}", "br").headers["accept-encoding"] == "gzip"
    assert store.xlen(STREAM) == 2


def test_pages_of_large_messages_are_read_to_the_end(http: httpx.Client, store: redis_py.Redis) -> None:
    ids = [store.xadd("large", {"text": "x" * 300_000, "n": n}) for n in range(30)] + [store.xadd("large", {"n": 30})]
    for reverse in ("false", "true"):
        found: list[str] = []
        address, pages = f"/v1/streams/large/messages?count=1000&reverse={reverse}", 0
        while address:
            answer = http.get(address)
            assert answer.status_code == 200 and len(answer.content) < 3 * MB
            page = answer.json()
            assert page["messages"]
            found += [message["id"] for message in page["messages"]]
            address, pages = page["next"], pages + 1
        assert found == (ids[::-1] if reverse == "true" else ids)
        assert pages >= 5


def test_a_unix_socket_behind_a_proxy(tmp_path: Path, redis_url: str) -> None:
    path = tmp_path / "http.sock"
    config = f'[api]\nbind = "unix:{path}"\nroot_path = "/events"\nproduce_timeout_ms = 10000'
    with (
        Service(tmp_path, redis_url, config=config, ready=False, bind="") as service,
        unix_browser(path, "http://shop.example") as client,
    ):
        eventually(lambda: client.get("/livez").status_code == 200)
        for prefix in ("", "/events"):
            answer = client.post(f"{prefix}{MESSAGES}", json={"n": 1})
            assert answer.status_code == 202, answer.text
            location = answer.headers["location"]
            assert location.startswith("/events/v1/streams/") and client.get(location).json()["fields"] == {"n": "1"}
        assert client.get("/").headers["location"] == "/events/docs"
        assert f'"url": "unix:{path}"' in service.log
    assert not path.exists()
