"""Following a stream over HTTP: server-sent events, across outages of Redis and to the service's end."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis as redis_py

from api import tail_routes
from api.problems import Problem
from tests.http.service import STREAM, Service, browser, problem
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

TAIL = f"/v1/streams/{STREAM}/tail"
#: What uvicorn says when it cuts what is still open after its limit.
CUT = "timeout graceful shutdown exceeded"
NDJSON = {"content-type": "application/x-ndjson"}
#: The default of `[api] max_tails`.
TAILS_MAX = 200


class Events:
    """What an open tail has received, read by a thread."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.lines: list[str] = []
        self.ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def messages(self) -> list[tuple[str, str]]:
        """(id, the field n) of each message; the event's id must be the message's."""
        events = [block.splitlines() for block in "\n".join(self.lines).split("\n\n")]
        found = []
        for event in events:
            fields = dict(line.split(": ", 1) for line in event if not line.startswith(":") and ": " in line)
            if {"id", "data"} <= fields.keys():
                message = json.loads(fields["data"])
                assert message["id"] == fields["id"]
                found.append((message["id"], message["fields"]["n"]))
        return found

    @property
    def numbers(self) -> list[str]:
        return [n for _, n in self.messages]

    @property
    def error(self) -> dict[str, Any]:
        """The problem in the event that ends the tail."""
        assert self.ended and self.lines[-3] == "event: problem", self.lines
        found: dict[str, Any] = json.loads(self.lines[-2].removeprefix("data: "))
        return found

    def leave(self) -> None:
        """Hang up; closing alone would wait for the thread that reads."""
        with contextlib.suppress(OSError):
            self.answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def _read(self) -> None:
        try:
            for line in self.answer.iter_lines():
                self.lines.append(line)
        except httpx.HTTPError as error:
            self.lines.append(f"error: {error!r}")
        self.ended = True


@contextmanager
def following(service: Service, last_event_id: str = "") -> Iterator[Events]:
    """A tail whose first line has come: it follows from here on."""
    headers = {"last-event-id": last_event_id} if last_event_id else {}
    with (
        browser(service.base_url) as http,
        http.stream("GET", TAIL, headers=headers) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        events = Events(answer)
        eventually(lambda: ": following" in events.lines, what="it follows")
        try:
            yield events
        finally:
            events.leave()


def test_new_messages_come_as_events(service: Service, store: redis_py.Redis) -> None:
    store.xadd(STREAM, {"n": "old"})
    with following(service) as events:
        ids = [store.xadd(STREAM, {"n": n}) for n in range(3)]
        eventually(lambda: len(events.messages) == 3)
        assert events.messages == [(entry, str(n)) for n, entry in enumerate(ids)]
        assert "retry: 2000" in events.lines
    headers = events.answer.headers
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")


def test_a_stream_that_does_not_exist_yet_is_followed_from_its_first_entry(
    service: Service, store: redis_py.Redis
) -> None:
    with following(service) as events:
        store.xadd(STREAM, {"n": 0})
        eventually(lambda: events.numbers == ["0"])


def test_last_event_id_goes_on_where_the_client_was(service: Service, store: redis_py.Redis) -> None:
    ids = [store.xadd(STREAM, {"n": n}) for n in range(250)]
    with following(service, ids[9]) as events:
        eventually(lambda: len(events.messages) == 240)
        store.xadd(STREAM, {"n": 250})
        eventually(lambda: len(events.messages) == 241)
    assert events.numbers == [str(n) for n in range(10, 251)]


def test_a_tail_after_the_highest_id_waits(service: Service, store: redis_py.Redis) -> None:
    """Nothing can come; without a stop at the end, each look is refused by Redis and repeated."""
    highest = "18446744073709551615-18446744073709551615"
    store.xadd(STREAM, {"n": 1}, id=highest)
    with following(service, highest) as events:
        eventually(lambda: any(client["cmd"].startswith("xread") for client in store.client_list()))
        assert not events.messages


def test_a_blocking_read_takes_one_entry(service: Service, store: redis_py.Redis) -> None:
    """Each may be as large as a body; what comes with it is read in pages that are limited in bytes."""
    with store.monitor() as monitor, following(service) as events:
        for n in range(5):
            service.patient.post(f"/v1/streams/{STREAM}/messages", json={"n": n})
        eventually(lambda: len(events.messages) == 5)
        read = next(said["command"] for said in monitor.listen() if said["command"].startswith("XREAD"))
        assert "COUNT 1 " in read
    assert events.numbers == [str(n) for n in range(5)]


def test_each_client_gets_everything(service: Service, store: redis_py.Redis) -> None:
    with following(service) as one, following(service) as other:
        for n in range(20):
            store.xadd(STREAM, {"n": n})
        eventually(lambda: len(one.messages) == len(other.messages) == 20)


def test_what_can_not_be_followed_is_a_problem_and_no_stream(service: Service, store: redis_py.Redis) -> None:
    problem(service.http.get(TAIL, headers={"last-event-id": "yesterday"}), 422, "invalid")
    store.set(STREAM, "text")
    problem(service.http.get(TAIL), 409, "wrong-type")


def test_a_stream_that_becomes_another_type_ends_its_tails(service: Service, store: redis_py.Redis) -> None:
    store.xadd(STREAM, {"n": 1})
    with following(service) as reading, following(service, "0-1") as behind:
        eventually(lambda: behind.numbers == ["1"])
        store.set(STREAM, "text")
        eventually(lambda: reading.ended and behind.ended)
        # A busy machine may let it begin: Redis was late.
        refused = eventually(
            lambda: problem(service.http.get(TAIL, headers={"last-event-id": "0-1"}), 409, "wrong-type")
        )
        for events in (reading, behind):
            assert {**events.error, "request_id": ""} == {**refused, "request_id": ""}
            assert events.error["request_id"] == events.answer.headers["x-request-id"]


@pytest.mark.parametrize("taken", ["-xread", "resetkeys", "resetpass"])
def test_a_right_that_is_taken_away_ends_the_tails(start_service: Callable[..., Service], taken: str) -> None:
    with RedisServer(tcp=True) as server, server.sync() as admin:
        admin.execute_command("ACL", "SETUSER", "web", "reset", "on", ">secret", "~*", "+@all")
        service = start_service(f"redis://web:secret@127.0.0.1:{server.port}/0")
        with following(service) as events:
            admin.execute_command("ACL", "SETUSER", "web", taken)
            if taken == "resetpass":  # the connections that there are stay as they are
                admin.client_kill_filter(_type="normal", skipme=True)
            eventually(lambda: events.ended)
            assert (events.error["status"], events.error["title"]) == (503, "Redis refuses the command for now")
            assert events.error["code"] == ("NOAUTH" if taken == "resetpass" else "NOPERM")


@pytest.mark.parametrize(
    "error",
    [
        redis_py.exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
        redis_py.exceptions.ConnectionError("Connection closed by server."),
        redis_py.exceptions.MasterDownError("Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
        redis_py.exceptions.ResponseError("BUSY Redis is busy running a script."),
        redis_py.exceptions.ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"),
        redis_py.exceptions.TimeoutError("Timeout reading from socket"),
        TimeoutError(),
    ],
)
def test_what_ends_by_itself_is_waited_for(error: Exception) -> None:
    assert tail_routes._passes(error)


def test_a_client_that_comes_back_in_an_outage_waits_for_its_end(
    durable_server: Any, start_service: Callable[..., Service]
) -> None:
    service = start_service(durable_server.url)
    durable_server.kill()
    with following(service, "0-1") as events:
        durable_server.start()
        with durable_server.sync() as client:
            client.xadd(STREAM, {"n": 1})
        eventually(lambda: events.numbers == ["1"])


def test_a_client_that_leaves_frees_its_connection(service: Service, store: redis_py.Redis) -> None:
    def reading() -> int:
        return sum(client["cmd"].startswith("xread") for client in store.client_list())

    with following(service):
        eventually(lambda: reading() == 1)
    eventually(lambda: reading() == 0, what="no connection reads")


def test_clients_that_leave_in_the_middle_of_a_flood_are_no_errors(service: Service, store: redis_py.Redis) -> None:
    flood = [json.dumps({"n": n, "text": "x" * 1000}) for n in range(300)]
    for _ in range(10):
        with following(service) as events:
            service.patient.post(f"/v1/streams/{STREAM}/messages:batch", content="\n".join(flood), headers=NDJSON)
            eventually(lambda: events.messages, interval_s=0.001)
        assert 0 < len(events.messages) <= 300
    assert "Traceback" not in service.log, service.log


def test_tails_wait_out_a_crash_of_redis_and_end_with_the_service(
    durable_server: Any, start_service: Callable[..., Service]
) -> None:
    service = start_service(durable_server.url)
    with following(service) as one, following(service) as other:
        with durable_server.sync() as client:
            client.xadd(STREAM, {"n": 0})
        eventually(lambda: one.numbers == other.numbers == ["0"])
        durable_server.kill()
        problem(service.http.get(TAIL), 503, "redis-unavailable")
        durable_server.start()
        with durable_server.sync() as client:
            for n in range(1, 4):
                client.xadd(STREAM, {"n": n})
        eventually(lambda: one.numbers == other.numbers == ["0", "1", "2", "3"])
        assert not one.ended and not other.ended

        assert service.stop() == 0
        eventually(lambda: one.ended and other.ended)
        assert not any(line.startswith("error") for line in one.lines + other.lines)
    assert CUT not in service.log


def test_a_tail_that_has_just_begun_ends_with_the_service(
    redis_url: str, start_service: Callable[..., Service]
) -> None:
    service = start_service(redis_url)
    with following(service), following(service):
        assert service.stop() == 0
    assert CUT not in service.log and "Traceback" not in service.log


async def test_clients_that_come_at_once_are_not_too_many() -> None:
    """A client counts from the check on, and not only when its answer begins."""
    settings = SimpleNamespace(api=SimpleNamespace(max_tails=200))
    service: Any = SimpleNamespace(tails=199, settings=settings)
    await tail_routes.tail("events", service, "0-0")
    with pytest.raises(Problem, match="already follow"):
        await tail_routes.tail("events", service, "0-0")
    assert service.tails == 200


def test_as_many_clients_follow_as_the_setting_allows_and_end_with_the_service(
    redis_server: RedisServer, start_service: Callable[..., Service]
) -> None:
    """Two hundred by default. They do not delay the end of the service."""
    service = start_service(redis_server.url, config="[api]\nproduce_timeout_ms = 10000")
    parts = urlsplit(service.base_url)
    request = f"GET {TAIL} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection((parts.hostname, parts.port), 30)) for _ in range(TAILS_MAX)
        ]
        for client in clients:
            client.sendall(request)
        for client in clients:
            assert b": following" in read_until(client, b": following")
        refused = problem(service.http.get(TAIL), 503, "busy")
        assert f"max_tails = {TAILS_MAX}" in refused["detail"]
        assert service.http.post(f"/v1/streams/{STREAM}/messages", json={"n": 1}).status_code == 202
        for client in clients:
            assert b'"n":"1"' in read_until(client, b'"n":"1"')

        began_s = time.monotonic()
        assert service.stop() == 0
        took_s = time.monotonic() - began_s
        assert took_s < max(10.0, 10 * service.started_ms / 1000)
        for client in clients:  # the last chunk: the stream has ended, and was not cut
            assert read_until(client, b"0\r\n\r\n").endswith(b"0\r\n\r\n")
    assert CUT not in service.log and "Traceback" not in service.log


def read_until(client: socket.socket, mark: bytes) -> bytes:
    """Return what comes up to the mark, or to the end."""
    found = b""
    while mark not in found and (part := client.recv(65536)):
        found += part
    return found


def test_a_client_that_does_not_read_does_not_delay_the_end_of_the_service(
    redis_server: RedisServer, start_service: Callable[..., Service]
) -> None:
    service = start_service(redis_server.url)
    parts = urlsplit(service.base_url)
    with redis_server.sync() as redis, socket.create_connection((parts.hostname, parts.port), 30) as client:
        client.sendall(f"GET {TAIL} HTTP/1.1\r\nhost: localhost\r\nlast-event-id: 0-1\r\n\r\n".encode())
        for n in range(10):
            redis.xadd(STREAM, {"n": n, "data": "x" * 1_000_000})
        assert read_until(client, b"xxx")

        began_s = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began_s < max(10.0, 10 * service.started_ms / 1000)
    assert [json.loads(line)["event"] for line in service.log.splitlines()] == ["listening"]
