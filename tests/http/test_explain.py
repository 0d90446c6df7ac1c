"""What became of a message, over HTTP."""

import httpx
import redis as redis_py

from supervisor.keys import dead_key
from tests.http.service import STREAM, problem
from tests.support.waiting import eventually


def address(entry: str, stream: str = STREAM) -> str:
    return f"/v1/streams/{stream}/messages/{entry}/explain"


def test_a_message_is_explained_for_each_group(http: httpx.Client, store: redis_py.Redis) -> None:
    ids = [store.xadd(STREAM, {"n": n}) for n in range(3)]
    store.xgroup_create(STREAM, "count", "0")
    store.xreadgroup("count", "host:0", {STREAM: ">"}, count=2)
    store.xack(STREAM, "count", ids[0])
    store.xadd(dead_key(STREAM, "count"), {"id": ids[0], "reason": "Boom"})
    answer = eventually(lambda: found if (found := http.get(address(ids[0]))).status_code == 200 else None)
    found = answer.json()
    assert (found["stream"], found["id"], found["presence"], found["known"]) == (STREAM, ids[0], "stored", True)
    groups = {group["group"]: group for group in found["groups"]}
    assert set(groups) == {"count", "mail"}, "a handler's group is named before there is one"
    assert (groups["mail"]["fate"], groups["count"]["fate"]) == ("no such group", "dead letter")
    assert groups["count"]["letter"]["reason"] == "Boom"

    def fate(entry: str) -> str:
        told = {group["group"]: group for group in http.get(address(entry)).json()["groups"]}
        return str(told["count"]["fate"])

    assert [fate(ids[1]), fate(ids[2])] == ["in hand", "not delivered yet"]
    assert http.get(address(ids[2])).json()["groups"][0]["before"] == 0


def test_what_redis_holds_nothing_of_is_not_found(http: httpx.Client, store: redis_py.Redis) -> None:
    store.xadd(STREAM, {"n": 1}, id="5-0")
    for entry, stream, why in (
        ("6-0", STREAM, "not published yet"), ("4", STREAM, "trimmed, deleted, or never published"),
        ("5-0", "other", "no such stream"),
    ):  # fmt: skip
        assert why in problem(http.get(address(entry, stream)), 404, "not-found")["detail"]
    problem(http.get(address("latest")), 422, "invalid")
    store.set("text", "x")
    problem(http.get(address("5-0", "text")), 409, "wrong-type")


def test_a_stream_s_name_may_hold_slashes(http: httpx.Client, store: redis_py.Redis) -> None:
    name = "a/messages/b"
    entry = store.xadd(name, {"n": 1})
    assert http.get(address(entry, name)).json()["stream"] == name
