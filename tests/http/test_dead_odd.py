"""Dead letters over HTTP when Redis is full or stalls, with letters of other programs, and with odd requests."""

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis as redis_py

from supervisor.keys import crashes_key, dead_key, replay_key, retries_key
from tests.http.service import STREAM, Service, problem
from tests.support.letters import add_dead_letter
from tests.support.waiting import eventually

GROUP = "mail"
DEAD = f"/v1/streams/{STREAM}/groups/{GROUP}/dead"
MOST = 2**64 - 1
#: As many as one request takes.
COUNT = 1_000


def test_a_full_redis_still_shows_and_drops_them(redis_server: Any, start_service: Callable[..., Service]) -> None:
    http = start_service(redis_server.url).patient
    with redis_server.sync() as store:
        ids = [add_dead_letter(store, STREAM, GROUP, {"n": n}, trimmed=True) for n in range(2)]
        store.config_set("maxmemory", 1)
        problem(http.post(f"{DEAD}:replay", json={"all": True}), 503, "redis-refused")
        assert len(http.get(DEAD).json()["letters"]) == 2, "what would need room is kept"
        for address in (f"/v1/streams/{STREAM}/dead", "/v1/dead"):
            eventually(lambda a=address: http.get(a).json()["total"] == 2)
        [verdict] = http.get(f"/v1/streams/{STREAM}/messages/{ids[0][1]}/explain").json()["groups"]
        assert verdict["fate"] == "dead letter"
        assert http.post(f"{DEAD}:drop", json={"all": True}).json()["counts"] == {"dropped": 2}


def test_a_replay_whose_answer_is_lost_does_not_say_that_nothing_was_done(
    redis_server: Any, start_service: Callable[..., Service]
) -> None:
    http = start_service(redis_server.url, config="[api]\nproduce_timeout_ms = 2000").http
    key = dead_key(STREAM, GROUP)
    copies = f"supervisor:{{{STREAM}}}:{GROUP}:replay"

    def freeze() -> None:
        with redis_server.sync() as client:
            eventually(lambda: client.xlen(key) < COUNT, 20, interval_s=0)
        redis_server.pause()

    def frozen_half_way() -> httpx.Response | None:
        with redis_server.sync() as store:
            store.delete(key, copies)
            pipe = store.pipeline(transaction=False)
            for n in range(COUNT):
                pipe.xadd(key, {"id": f"{n + 1}-0", "field:text": "x" * 10_000})
            pipe.execute()
        freezer = threading.Thread(target=freeze)
        freezer.start()
        try:
            answer = http.post(f"{DEAD}:replay", json={"all": True})
            freezer.join()
        finally:
            redis_server.resume()
        return answer if "outcome-unknown" in answer.text else None

    answer = eventually(frozen_half_way, 60, what="Redis stands still in the middle of a replay")
    assert answer is not None
    found = problem(answer, 503, "outcome-unknown")
    assert "dead letters" in http.get(found["type"]).text and "Repeat the request" in found["detail"]
    with redis_server.sync() as store:
        assert 0 < eventually(lambda: store.xlen(key)) < COUNT
        body: Any = {"all": True}
        while body:
            body = http.post(f"{DEAD}:replay", json=body).json()["next"]
        origins = [fields[b"supervisor:origin"] for _, fields in store.xrange(copies)]
        assert origins == [b"%d-0" % (n + 1) for n in range(COUNT)], "each once"


@pytest.mark.parametrize(
    "told",
    [
        {}, {"exit_code": "none"}, {"exit_code": ""}, {"exit_code": "9" * 30}, {"deliveries": "9" * 30},
        {"deliveries": "9" * 5_000}, {"dead_at_ms": "9" * 18},
        {b"id": b"\xff", b"\xfe": b"\xed\xa0\x80"},
    ],
    ids=lambda told: str(told)[:30],
)  # fmt: skip
def test_a_letter_that_no_worker_wrote_is_listed_and_dropped(
    http: httpx.Client, store: redis_py.Redis, told: dict[Any, Any]
) -> None:
    letter = store.xadd(dead_key(STREAM, GROUP), {"id": "1-0", "field:n": "1"} | told)
    [shown] = http.get(DEAD).json()["letters"]
    assert (shown["letter_id"], shown["exit_code"], shown["deliveries"]) == (letter, None, 0)
    assert http.delete(f"{DEAD}/{letter}").status_code == 204


def test_a_letter_of_no_message_is_kept_and_hinders_no_other(http: httpx.Client, store: redis_py.Redis) -> None:
    add_dead_letter(store, STREAM, GROUP, {"n": 1}, entry="7-0")
    for given in ("", "soon", "-", "+", "$", "9" * 30, "7", "07-00"):
        store.xadd(dead_key(STREAM, GROUP), {"id": given, "field:n": "1"})
    answer = http.post(f"{DEAD}:replay", json={"all": True}).json()
    assert answer["counts"] == {"replayed": 3, "no-id": 6}
    copies = store.xrange(replay_key(STREAM, GROUP))
    assert [fields["supervisor:origin"] for _, fields in copies] == ["7-0"] * 3, "three letters name it"
    assert http.post(f"{DEAD}:replay", json={"reason": "nothing"}).status_code == 200
    assert http.post(f"{DEAD}:drop", json={"all": True}).json()["counts"] == {"dropped": 6}


@pytest.mark.parametrize("record", [b"often", b"\xff", b"1:soon", b"9" * 5_000, b""])
def test_records_that_no_worker_wrote_say_nothing(http: httpx.Client, store: redis_py.Redis, record: bytes) -> None:
    entry = store.xadd(STREAM, {"n": 1})
    store.xgroup_create(STREAM, GROUP, "0")
    store.xreadgroup(GROUP, "host:0", {STREAM: ">"})
    for key in (retries_key(STREAM, GROUP), crashes_key(STREAM, GROUP)):
        store.hset(key, str(entry), record)
    [told] = http.get(f"/v1/streams/{STREAM}/messages/{entry}/explain").json()["groups"]
    assert (told["fate"], told["consumer"], told["next_due_ms"], told["crashes"]) == ("in hand", "host:0", None, 0)


def test_an_id_means_the_same_however_it_is_written(http: httpx.Client, store: redis_py.Redis) -> None:
    letter, _ = add_dead_letter(store, STREAM, GROUP, {"n": 1}, entry="5-0", letter="100-0")
    add_dead_letter(store, STREAM, GROUP, {"n": 2}, entry="5-3", letter="100-3")
    for written in ("5", "5-0", "005-00", "100", "0100-0"):
        assert http.get(f"{DEAD}/{written}").json()["letter_id"] == letter, written


def test_an_id_of_a_letter_and_of_anothers_message_means_the_letter(http: httpx.Client, store: redis_py.Redis) -> None:
    add_dead_letter(store, STREAM, GROUP, {"n": 1}, entry="5-0", letter="7-0")
    other, entry = add_dead_letter(store, STREAM, GROUP, {"n": 2}, entry="7-0", letter="9-0")
    [told] = http.get(f"/v1/streams/{STREAM}/messages/{entry}/explain").json()["groups"]
    assert (told["fate"], told["letter"]["letter_id"]) == ("dead letter", other), "there it means the message"
    assert http.get(f"{DEAD}/{entry}").json()["id"] == "5-0"
    assert http.post(f"{DEAD}:replay", json={"ids": [entry]}).json()["outcomes"][0]["id"] == "5-0"
    assert http.delete(f"{DEAD}/{entry}").status_code == 204
    assert store.xlen(dead_key(STREAM, GROUP)) == 0, "when that is gone it is the message's"


@pytest.mark.parametrize("group", ["\\u0000", ""])
def test_a_group_that_has_no_name_in_redis_is_refused(http: httpx.Client, group: str) -> None:
    body = f'{{"all": true, "group": "{group}"}}'
    answer = http.post(f"/v1/streams/{STREAM}/dead:replay", content=body, headers={"content-type": "application/json"})
    problem(answer, 422, "invalid")


def test_a_range_that_can_hold_nothing_is_refused(http: httpx.Client, store: redis_py.Redis) -> None:
    add_dead_letter(store, STREAM, GROUP, {"n": 1})
    problem(http.get(DEAD, params={"start": f"({MOST}-{MOST}"}), 422, "invalid")
    problem(http.get(f"/v1/streams/{STREAM}/messages", params={"end": "(0-0"}), 422, "invalid")
    assert len(http.get(DEAD, params={"start": "(0-0"}).json()["letters"]) == 1


def test_a_refused_method_is_told_all_that_there_are(http: httpx.Client) -> None:
    for address, methods in (
        (f"{DEAD}/1-0", "GET, HEAD, DELETE"), (DEAD, "GET, HEAD"),
        (f"/v1/streams/{STREAM}/messages", "GET, HEAD, POST"), (f"{DEAD}:drop", "POST"),
    ):  # fmt: skip
        answer = http.put(address)
        problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"] == methods, address


def test_the_description_tells_of_the_token_and_of_what_ids_look_like(
    redis_url: str, start_service: Callable[..., Service], http: httpx.Client
) -> None:
    secret = start_service(redis_url, config='[api]\ntoken = "s3cret"').http
    told = secret.get("/openapi.json", headers={"Authorization": "Bearer s3cret"}).json()
    assert told["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, operations in told["paths"].items():
        for operation in operations.values():
            needs = operation.get("security", told["security"]) != []
            answer = secret.get(path.replace("{kind}", "invalid"))
            assert (answer.status_code == 401) == needs, path
    plain = http.get("/openapi.json").json()
    assert "security" not in plain and "securitySchemes" not in plain["components"]
    parameters = plain["paths"]["/v1/streams/{stream}/dead/{entry_id}"]["delete"]["parameters"]
    patterns = {one["name"]: one["schema"].get("pattern") for one in parameters}
    assert patterns["stream"] and patterns["entry_id"] == "^[0-9]{1,19}(-[0-9]{1,19})?$"
