"""All that a pool does for its users, once, on any kind of Redis."""

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from typing import Any

from fastapi import FastAPI

from supervisor import Message, SyncPublisher, context, handler
from supervisor.broker.blocking import blocking_client
from supervisor.broker.connect import client
from supervisor.fastapi import lifespan
from supervisor.publisher import Publisher
from supervisor.shared_state import SlotField
from tests.redis.worker import working
from tests.support.pool import Pool
from tests.support.recording import RECORD, seen
from tests.support.waiting import eventually, eventually_async

#: In a cluster of three nodes these two are on different ones.
STREAMS = ("events", "orders")
HANDLERS = (
    RECORD
    + """
    async def work(message):
        n = message.fields["n"]
        if n == "retried" and message.deliveries == 1:
            raise ValueError("once")
        if n.startswith("poison") and not os.path.exists("healed"):
            raise ValueError("always")
        record(n)

    @handler("events", group="workers", max_deliveries=2, retry_base_s=0.05)
    async def handle_event(message: Message) -> None:
        await work(message)

    @handler("orders", group="workers", max_deliveries=2, retry_base_s=0.05)
    async def handle_order(message: Message) -> None:
        await work(message)

    def __getattr__(name):  # only the HTTP service asks for it, and only there FastAPI is imported
        if name != "router":
            raise AttributeError(name)
        from fastapi import APIRouter
        from supervisor.fastapi import PublisherDep, RedisDep

        router = APIRouter()

        @router.post("/seats/{seat}")
        async def take(seat: str, publisher: PublisherDep, redis: RedisDep) -> dict[str, str]:
            script = "redis.call('XADD', KEYS[1], '*', 'n', ARGV[1]) return redis.call('SET', KEYS[2], ARGV[1])"
            await publisher.evaluate(script, ["events", "users:{events}:seat"], seat)
            return {"seat": (await redis.get("users:{events}:seat")).decode()}

        return router
"""
)
#: The number of entries that are kept of the second stream.
KEPT = 100
CONFIG = f'stream."orders".max_length = {KEPT}\napi.routers = ["handlers:router"]'
HANDLED_LIMIT_S = 40.0


def post(pool: Pool, path: str, body: Any, **headers: str) -> dict[str, Any]:
    """The answer of the pool's HTTP service; fails for one that is not a success."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{pool.base_url}{path}", data, {"Content-Type": "application/json", **headers})
    found: dict[str, Any] = _answer(request)
    return found


def get(pool: Pool, path: str) -> Any:
    """The same for GET."""
    return _answer(urllib.request.Request(f"{pool.base_url}{path}"))


def _answer(request: urllib.request.Request) -> Any:
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{request.full_url}: {error.code}: {error.read().decode()}") from None


def said(pool: Pool, *words: str, stdin: str | None = None) -> str:
    """stdout of a command that must succeed."""
    done = pool.command(*words, stdin=stdin)
    assert done.returncode == 0, f"{words}: {done.returncode}: {done.stderr}"
    return done.stdout


def handled(pool: Pool, *names: str, limit_s: float = HANDLED_LIMIT_S) -> None:
    """Wait until each of these was handled."""
    eventually(lambda: set(names) <= set(seen(pool)), limit_s, what=f"handled; missing {set(names) - set(seen(pool))}")


def settled(pool: Pool) -> dict[str, int]:
    """Wait until nothing is unread or pending; the length of each stream then."""

    def found() -> dict[str, int] | None:
        streams = get(pool, "/v1/streams")["streams"]
        groups = [group for stream in streams for group in stream["groups"]]
        assert len(groups) == len(STREAMS)
        left = any(group["lag"] or group["pending"] for group in groups)
        return None if left else {stream["stream"]: stream["length"] for stream in streams}

    return eventually(found, HANDLED_LIMIT_S, 0.1, what="nothing is left")


def everything_works(pool: Pool) -> None:
    """Publish by command and HTTP, retry, give up, replay, lose a worker, look at all of it."""
    publish_and_handle(pool)
    give_up_and_replay(pool)
    lose_a_worker(pool)
    eventually(lambda: settled(pool)["orders"] == KEPT, what="what all have settled is trimmed")
    look(pool)


def publish_and_handle(pool: Pool) -> None:
    """Command and HTTP; one at a time, many at once, and once only by its key."""
    said(pool, "publish", "events", "n=events-alone")
    lines = "\n".join(json.dumps({"n": f"line-{number}"}) for number in range(50))
    said(pool, "publish", "orders", "--json", "-", "--quiet", stdin=lines)
    names = ["events-alone", *(f"line-{number}" for number in range(50))]
    for stream in STREAMS:
        path = f"/v1/streams/{stream}/messages"
        key = {"Idempotency-Key": f'"{stream}"'}
        first = post(pool, path, {"n": f"{stream}-http"}, **key)
        assert post(pool, path, {"n": f"{stream}-http"}, **key)["id"] == first["id"]
        assert get(pool, f"{path}/{first['id']}")["fields"] == {"n": f"{stream}-http"}
        names += [f"{stream}-http", *many(pool, stream, "batch", 20)]
    handled(pool, *names)
    assert seen(pool)["events-http"] == 1
    assert post(pool, "/seats/seat-12", {}) == {"seat": "seat-12"}
    handled(pool, "seat-12")


def many(pool: Pool, stream: str, name: str, count: int) -> list[str]:
    """Publish `count` messages at once; return the field that tells them apart."""
    names = [f"{stream}-{name}-{number}" for number in range(count)]
    assert post(pool, f"/v1/streams/{stream}/messages:batch", [{"n": n} for n in names])["count"] == count
    return names


def give_up_and_replay(pool: Pool) -> None:
    """A retry, two dead letters, and the same messages again; one of them is no longer in its stream."""
    said(pool, "publish", "orders", "n=retried")
    said(pool, "publish", "orders", "n=poison")
    said(pool, "publish", "orders", "n=poison-trimmed")
    handled(pool, "retried")
    dead = "/v1/streams/orders/groups/workers/dead"
    eventually(lambda: get(pool, dead)["total"] == 2, 30)
    [trimmed] = get(pool, f"{dead}?text=trimmed")["letters"]
    asyncio.run(delete(pool, "orders", trimmed["id"]))
    listed = said(pool, "dead", "list", "orders", "workers", "--json").splitlines()
    assert sorted(json.loads(line)["fields"]["n"] for line in listed) == ["poison", "poison-trimmed"]
    (pool.folder / "healed").touch()
    assert post(pool, f"{dead}:replay", {"text": "trimmed"})["counts"] == {"replayed": 1}
    said(pool, "dead", "replay", "orders", "workers", "--yes")
    handled(pool, "poison", "poison-trimmed")


async def delete(pool: Pool, stream: str, entry: str) -> None:
    """Trim the stream as retention does."""
    redis = client(pool.redis_url)
    assert await redis.xdel(stream, entry) == 1
    await redis.aclose()


def lose_a_worker(pool: Pool) -> None:
    """Kill a worker while messages come; all of them are handled."""
    names = [name for stream in STREAMS for name in many(pool, stream, "before", 200)]
    pid = pool.pids()[0]
    os.kill(pid, signal.SIGKILL)
    names += [name for stream in STREAMS for name in many(pool, stream, "after", 200)]
    handled(pool, *names)
    eventually(lambda: pool.pids().get(0, pid) != pid, what="the worker was replaced")


def look(pool: Pool) -> None:
    """Every command and route that shows something."""
    pool.wait_ready()
    status = pool.status()
    assert {(group["stream"], group["group"]) for group in status["groups"]} == {(name, "workers") for name in STREAMS}
    assert "error" not in status["redis"] and status["redis"]["version"]
    first = json.loads(said(pool, "read", "events", "--json", "--count", "1"))
    assert first["fields"] == {"n": "events-alone"}
    assert json.loads(said(pool, "tail", "orders", "--from", "0", "--count", "1", "--json"))["fields"]["n"]
    assert said(pool, "pending", "events", "workers", "--json").strip() == "[]"
    doctor = pool.command("doctor", "--json")
    assert not [line for line in json.loads(doctor.stdout) if line["level"] == "fail"], doctor.stdout


async def an_app_works(url: str) -> None:
    """Consumers of two streams in the lifespan of a FastAPI app, which may be on different servers."""
    found: set[str] = set()

    @handler("signups", group="app")
    async def signup(message: Message) -> None:
        found.add(message.fields["n"])

    @handler("logins", group="app")
    async def login(message: Message) -> None:
        found.add(message.fields["n"])

    app = FastAPI(lifespan=lifespan(signup, login, redis_url=url))
    async with app.router.lifespan_context(app), Publisher(url) as publisher:
        for stream in ("signups", "logins"):
            await publisher.publish_many(stream, [{"n": f"{stream}-{number}"} for number in range(20)])
        await eventually_async(lambda: len(found) == 40, what="handled")


async def blocking_clients_work(url: str) -> None:
    """A SyncPublisher in a thread, and what a plain handler gets: a publisher and a client that block."""

    @handler("requests", group="plain")
    def answer(message: Message) -> None:
        n = message.fields["n"]
        context().publisher.publish("answers", {"n": f"published {n}"})  # type: ignore[unused-coroutine]
        client: Any = context().redis
        client.xadd("answers", {"n": f"added {n}"})
        with client.pipeline(transaction=False) as pipe:
            pipe.incr("{answers}:count")
            pipe.expire("{answers}:count", 60)
            pipe.execute()

    def request() -> None:
        with SyncPublisher(url) as publisher:
            publisher.publish("requests", {"n": 1}, key="once")
            publisher.publish("requests", {"n": 1}, key="once")
            publisher.publish_many("requests", [{"n": 2}, {"n": 3}])
            publisher.publish("requests", {"n": 4}, after_s=0.1)
            assert publisher.evaluate("return redis.call('XLEN', KEYS[1])", ["requests"]) == 3

    def answers() -> list[str]:
        with blocking_client(url) as redis:
            assert redis.get("{answers}:count") == b"3"
            found = [fields[b"n"].decode() for _, fields in redis.xrange("answers")]
            redis.delete("requests", "supervisor:{requests}:later")
            redis.delete("answers", "{answers}:count")
            return found

    await asyncio.to_thread(request)
    async with working(url, answer) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 3)
    expected = {f"{what} {n}" for n in (1, 2, 3) for what in ("published", "added")}
    found = await asyncio.to_thread(answers)
    assert len(found) == 6 and set(found) == expected
