"""Dead letters over HTTP: found page by page, replayed to their own group, removed; nothing by accident."""

import json
import time
from collections import Counter
from typing import Any

import httpx
import pytest
import redis as redis_py
from hypothesis import given
from hypothesis import strategies as st

from api.dead_letter_query import SCAN_MAX, Cursor, ScanResult, parse_cursor
from api.dead_letter_responses import page
from api.problems import Problem
from supervisor.core.dead_letter import Filter
from supervisor.keys import crashes_key, dead_key, replay_key, retries_key
from tests.http.service import STREAM, problem
from tests.support.letters import add_dead_letter
from tests.support.waiting import eventually

GROUP = "mail"
DEAD = f"/v1/streams/{STREAM}/groups/{GROUP}/dead"
OF_STREAM = f"/v1/streams/{STREAM}/dead"


@pytest.fixture
def letters(store: redis_py.Redis) -> list[tuple[str, str]]:
    """Ten of one group; (letter id, message id), the oldest first."""
    return [
        add_dead_letter(
            store, STREAM, GROUP, {"n": f"N{n}"}, entry=f"{n + 1}-0", letter=f"{n + 100}-0", reason=reason(n)
        )
        for n in range(10)
    ]


def reason(n: int) -> str:
    return "Timeout" if n % 2 else "ValueError: no"


def replayed(store: redis_py.Redis, group: str = GROUP) -> list[str]:
    """The ids of the messages in the group's replay stream."""
    return [fields["supervisor:origin"] for _, fields in store.xrange(replay_key(STREAM, group))]


def through(http: httpx.Client, address: str, **query: Any) -> list[dict[str, Any]]:
    """All pages."""
    pages = [http.get(address, params=query).json()]
    while pages[-1]["next"]:
        pages.append(http.get(pages[-1]["next"]).json())
    return pages


def test_next_keeps_the_whole_age() -> None:
    found = ScanResult(total=2, next=Cursor((STREAM, GROUP), "1-0"))
    answer = json.loads(bytes(page(found, Filter(older_than_ms=2_592_123_001), 1, DEAD, {"start": "1-0"}).body))
    assert "&older_s=2592123.001&" in answer["next"].replace("?", "&")


@pytest.mark.parametrize("count", [1, 3, 10, 11])
@pytest.mark.parametrize("address", [DEAD, OF_STREAM, "/v1/dead"])
def test_next_leads_through_all_letters_once(
    http: httpx.Client, letters: list[tuple[str, str]], address: str, count: int
) -> None:
    pages = through(http, address, count=count)
    assert [(letter["letter_id"], letter["id"]) for page in pages for letter in page["letters"]] == letters
    assert all(len(page["letters"]) == count for page in pages[:-1]) and pages[-1]["letters"]
    assert {(page["total"], page["matching"]) for page in pages} == {(10, 10)}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"reason": "timeout"}, [1, 3, 5, 7, 9]),
        ({"handler": "MAIL.send"}, list(range(10))),
        ({"handler": "nobody"}, []),
        ({"text": "n3"}, [3]),
        ({"text": "no luck with 5-0"}, [4]),
        ({"reason": "time", "text": "n3"}, [3]),
        ({"older_s": "60"}, list(range(10))),
        ({"start": "105"}, [5, 6, 7, 8, 9]),
        ({"start": "(105", "reason": "timeout"}, [7, 9]),
    ],
    ids=str,
)
def test_a_filter_chooses(
    http: httpx.Client, letters: list[tuple[str, str]], query: dict[str, str], found: list[int]
) -> None:
    [page] = through(http, DEAD, **query)
    assert [letter["letter_id"] for letter in page["letters"]] == [letters[n][0] for n in found]
    assert page["complete"] and page["total"] == 10
    if "start" not in query:
        assert page["matching"] == len(found)
    assert [letter for page in through(http, DEAD, **query, count=2) for letter in page["letters"]] == page["letters"]


def test_the_young_are_left_out_by_age(http: httpx.Client, store: redis_py.Redis) -> None:
    now_ms = int(time.time() * 1000)
    old, _ = add_dead_letter(store, STREAM, GROUP, {"n": 1}, dead_at_ms=now_ms - 7_200_000)
    add_dead_letter(store, STREAM, GROUP, {"n": 2}, dead_at_ms=now_ms)
    page = http.get(DEAD, params={"older_s": 3600}).json()
    assert [letter["letter_id"] for letter in page["letters"]] == [old]


def test_a_look_through_many_is_bounded_and_says_so(http: httpx.Client, store: redis_py.Redis) -> None:
    count = SCAN_MAX + 500
    pipe = store.pipeline(transaction=False)
    for n in range(count):
        pipe.xadd(dead_key(STREAM, GROUP), {"id": f"{n + 1}-0", "reason": "needle" if n == count - 1 else "hay"})
    pipe.execute()
    first = http.get(DEAD, params={"reason": "needle"}).json()
    assert first["letters"] == [] and first["matching"] == 0 and not first["complete"]
    assert 0 < first["scanned"] <= SCAN_MAX and first["total"] == count
    pages = through(http, DEAD, reason="needle")
    assert [letter["id"] for page in pages for letter in page["letters"]] == [f"{count}-0"]
    assert len(pages) >= 2 and pages[-1]["complete"]
    assert sum(page["scanned"] for page in pages) == count


def test_pages_of_large_letters_are_bounded_and_lead_to_the_end(http: httpx.Client, store: redis_py.Redis) -> None:
    for n in range(8):
        add_dead_letter(store, STREAM, GROUP, {"n": n, "large": "x" * 1_000_000})
    address, found = DEAD, []
    while address:
        page = http.get(address).json()
        assert 1 <= len(page["letters"]) <= 3 and page["total"] == 8
        address, found = page["next"], found + page["letters"]
    assert [letter["fields"]["n"] for letter in found] == [str(n) for n in range(8)]


def test_one_letter_by_its_own_and_by_its_messages_id(http: httpx.Client, letters: list[tuple[str, str]]) -> None:
    for letter_id, entry in letters[:2]:
        by_letter, by_message = http.get(f"{DEAD}/{letter_id}").json(), http.get(f"{DEAD}/{entry}").json()
        assert by_letter == by_message
        assert (by_letter["letter_id"], by_letter["id"], by_letter["stream"]) == (letter_id, entry, STREAM)
        assert "ValueError" in by_letter["traceback"]
    problem(http.get(f"{DEAD}/77-7"), 404, "not-found")
    problem(http.get(f"{DEAD}/soon"), 422, "invalid")


def test_a_message_that_is_newer_than_its_letter_is_found(http: httpx.Client, store: redis_py.Redis) -> None:
    add_dead_letter(store, STREAM, GROUP, {"n": 1}, entry="9999999999999-0", letter="5-0")
    assert http.get(f"{DEAD}/9999999999999-0").json()["letter_id"] == "5-0"


def test_ids_are_replayed_to_their_group_as_if_never_tried(
    http: httpx.Client, store: redis_py.Redis, letters: list[tuple[str, str]]
) -> None:
    store.xgroup_create(STREAM, "other", "$")
    store.hset(retries_key(STREAM, GROUP), "2-0", "4:1")
    store.hset(crashes_key(STREAM, GROUP), "2-0", "2")
    answer = http.post(f"{DEAD}:replay", json={"ids": [letters[0][0], "2-0", "77-0"]}).json()
    assert [(entry["id"], entry["outcome"]) for entry in answer["outcomes"]] == [
        ("1-0", "replayed"), ("2-0", "replayed"), ("77-0", "not-found"),
    ]  # fmt: skip
    assert answer["counts"] == {"replayed": 2, "not-found": 1} and answer["next"] is None
    assert replayed(store) == ["1-0", "2-0"] and replayed(store, "other") == []
    assert store.xlen(dead_key(STREAM, GROUP)) == 8
    assert not store.exists(retries_key(STREAM, GROUP), crashes_key(STREAM, GROUP))


@pytest.mark.parametrize("address", [DEAD, OF_STREAM])
def test_a_filter_replays_and_drops_what_it_fits(
    http: httpx.Client, store: redis_py.Redis, letters: list[tuple[str, str]], address: str
) -> None:
    answer = http.post(f"{address}:replay", json={"reason": "timeout"}).json()
    assert answer["counts"] == {"replayed": 5} and replayed(store) == ["2-0", "4-0", "6-0", "8-0", "10-0"]
    answer = http.post(f"{address}:drop", json={"all": True, "group": GROUP}).json()
    assert answer["counts"] == {"dropped": 5} and store.xlen(dead_key(STREAM, GROUP)) == 0
    assert len(replayed(store)) == 5


@pytest.mark.parametrize("address", [DEAD, OF_STREAM])
def test_next_is_the_body_that_goes_on_and_never_meets_what_came_later(
    http: httpx.Client, store: redis_py.Redis, letters: list[tuple[str, str]], address: str
) -> None:
    body: dict[str, Any] | None = {"all": True, "count": 4}
    counts: Counter[str] = Counter()
    requests = 0
    while body:
        answer = http.post(f"{address}:replay", json=body).json()
        counts.update(answer["counts"])
        body = answer["next"]
        requests += 1
        add_dead_letter(store, STREAM, GROUP, {"n": "new"})
    assert (requests, counts) == (3, {"replayed": 10})
    assert store.xlen(dead_key(STREAM, GROUP)) == 3, "what was given up meanwhile is left alone"


@pytest.mark.parametrize(
    "body",
    [
        {}, {"all": False}, {"reason": ""}, {"all": True, "reason": "x"}, {"ids": ["1-0"], "all": True}, {"ids": []},
        {"ids": ["yesterday"]}, {"older_s": -1}, {"older_s": "soon"}, {"reson": "x"}, {"all": True, "cursor": "x"},
        {"all": True, "count": 0}, {"all": True, "group": "another"}, [], "all", {"all": "yes"}, {"all": 1},
        {"older_s": True}, {"all": True, "count": "5"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("verb", ["replay", "drop"])
def test_nothing_is_changed_by_accident(
    http: httpx.Client, store: redis_py.Redis, letters: list[tuple[str, str]], verb: str, body: Any
) -> None:
    problem(http.post(f"{DEAD}:{verb}", json=body), 422, "invalid")
    assert store.xlen(dead_key(STREAM, GROUP)) == 10 and replayed(store) == []


def test_a_mistyped_member_is_named(http: httpx.Client) -> None:
    assert "did you mean 'reason'?" in problem(http.post(f"{DEAD}:drop", json={"reson": "x"}), 422, "invalid")["detail"]
    problem(http.post(f"{DEAD}:drop", content="all", headers={"content-type": "text/plain"}), 415, "media-type")
    problem(http.post(f"{DEAD}:drop", content="{", headers={"content-type": "application/json"}), 400, "malformed-json")


def test_one_is_removed(http: httpx.Client, store: redis_py.Redis, letters: list[tuple[str, str]]) -> None:
    assert http.delete(f"{DEAD}/{letters[0][0]}").status_code == 204
    assert http.delete(f"{OF_STREAM}/{letters[1][1]}").status_code == 204
    assert store.xlen(dead_key(STREAM, GROUP)) == 8
    problem(http.delete(f"{DEAD}/{letters[0][0]}"), 404, "not-found")


def test_of_two_groups_letters_the_group_must_be_named(http: httpx.Client, store: redis_py.Redis) -> None:
    for group in (GROUP, "count"):
        add_dead_letter(store, STREAM, group, {"n": 1}, letter="100-0")
    found = problem(http.delete(f"{OF_STREAM}/100-0"), 409, "ambiguous")
    assert "count, mail" in found["detail"]
    assert http.delete(f"{OF_STREAM}/100-0", params={"group": "count"}).status_code == 204
    assert (store.xlen(dead_key(STREAM, "count")), store.xlen(dead_key(STREAM, GROUP))) == (0, 1)


def test_groups_of_a_stream_are_listed_one_after_the_other(http: httpx.Client, store: redis_py.Redis) -> None:
    wanted = [add_dead_letter(store, STREAM, group, {"n": n})[0] for group in ("count", GROUP) for n in range(3)]
    pages = through(http, OF_STREAM, count=2)
    assert [letter["letter_id"] for page in pages for letter in page["letters"]] == wanted
    assert {page["total"] for page in pages} == {6}
    only = through(http, OF_STREAM, count=2, group=GROUP)
    assert [letter["letter_id"] for page in only for letter in page["letters"]] == wanted[3:]
    mail = http.get("/v1/dead").json()
    assert [letter["letter_id"] for letter in mail["letters"]] == wanted[3:], "only mail has a handler here"


def test_names_with_slashes_and_colons_are_addressed(http: httpx.Client, store: redis_py.Redis) -> None:
    letter, _ = add_dead_letter(store, "a/b c", "g/h:i", {"n": 1})
    add_dead_letter(store, "a/b c", "g/h:i", {"n": 2})
    page = http.get("/v1/streams/a/b c/groups/g/h:i/dead", params={"count": 1}).json()
    assert [one["letter_id"] for one in page["letters"]] == [letter]
    assert http.get(page["next"]).json()["letters"][0]["fields"] == {"n": "2"}
    assert http.delete(f"/v1/streams/a%2Fb%20c/groups/g%2Fh:i/dead/{letter}").status_code == 204


def test_what_was_trimmed_is_replayed_too_and_all_are_seen_as_pending(
    http: httpx.Client, store: redis_py.Redis, letters: list[tuple[str, str]]
) -> None:
    store.xtrim(STREAM, maxlen=4, approximate=False)
    assert http.post(f"{DEAD}:replay", json={"all": True}).json()["counts"] == {"replayed": 10}

    def figures_of_mail() -> tuple[int, ...]:
        [mail] = [group for group in http.get("/v1/groups").json()["groups"] if group["group"] == GROUP]
        return mail["pending"], mail["replaying"], mail["dead"], mail["lag"]

    eventually(lambda: figures_of_mail() == (10, 10, 0, 0))
    figures = http.get("/metrics").text
    assert f'supervisor_stream_replaying_messages{{stream="{STREAM}",group="{GROUP}"}} 10' in figures


def test_what_can_not_be_replayed_is_reported_and_kept(http: httpx.Client, store: redis_py.Redis) -> None:
    add_dead_letter(store, STREAM, GROUP, {"n": 1}, entry="1-0")
    store.xgroup_destroy(STREAM, GROUP)
    answer = http.post(f"{DEAD}:replay", json={"all": True}).json()
    assert answer["counts"] == {"no-group": 1}
    store.delete(STREAM)
    store.set(STREAM, "text")
    problem(http.post(f"{DEAD}:replay", json={"all": True}), 409, "wrong-type")
    assert store.xlen(dead_key(STREAM, GROUP)) == 1


def test_letters_that_others_wrote_hide_none(http: httpx.Client, store: redis_py.Redis) -> None:
    key = dead_key(STREAM, GROUP)
    store.xadd(key, {"deliveries": "many", "dead_at_ms": "-"})
    store.xadd(key, {b"field:\xff": b"\xfe"})
    shown = [letter["fields"] for letter in http.get(DEAD).json()["letters"]]
    assert shown == [{}, {"\\xff": "\\xfe"}]
    assert http.post(f"{DEAD}:drop", json={"all": True}).json()["counts"] == {"dropped": 2}


def test_nothing_is_there_where_nobody_reads(http: httpx.Client, store: redis_py.Redis) -> None:
    empty = {"letters": [], "total": 0, "scanned": 0, "matching": 0, "complete": True, "next": None}
    for address in ("/v1/streams/none/dead", "/v1/streams/none/groups/g/dead", "/v1/dead"):
        assert http.get(address).json() == empty
    assert store.dbsize() == 0


names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
bounds = st.one_of(st.sampled_from("-+"), st.integers(0, 2**64 - 1).map(lambda ms: f"{ms}-0"))


@given(st.builds(Cursor, st.tuples(names, names), bounds, bounds))
def test_a_cursor_comes_back_as_the_position_it_stands_for(place: Cursor) -> None:
    assert parse_cursor(place.encode()) == place


@given(st.text(max_size=60))
def test_any_other_text_is_refused(text: str) -> None:
    try:
        parse_cursor(text)
    except Problem as refused:
        assert refused.kind == "invalid"
