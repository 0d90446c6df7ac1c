"""The names of streams and groups in addresses: each has one address, and reaches nothing else."""

import httpx
import pytest
import redis as redis_py

from tests.http.service import problem
from tests.support.letters import add_dead_letter

V1 = "/v1/streams"


@pytest.mark.parametrize("name", ["%ff", "%fe", "a%C3", "%ed%a0%80"])
def test_a_name_that_is_not_utf_8_is_refused(http: httpx.Client, store: redis_py.Redis, name: str) -> None:
    problem(http.post(f"{V1}/{name}/messages", json={"n": 1}), 400, "bad-request")
    problem(http.get(f"{V1}/a/dead?group={name}"), 400, "bad-request")
    assert store.keys() == []


@pytest.mark.parametrize("name", ["%2E", "%2e%2e", "a%2F..%2Fb", "a%0A", "%0A", "a%00b", ""])
def test_dots_and_control_characters_have_one_answer(http: httpx.Client, store: redis_py.Redis, name: str) -> None:
    for path in ("messages", "tail", "dead", "messages/1-0", "messages/1-0/explain", "groups/g/dead"):
        problem(http.get(f"{V1}/{name}/{path}"), 422, "invalid")
    problem(http.post(f"{V1}/{name}/messages", json={"n": 1}), 422, "invalid")
    assert store.keys() == []


@pytest.mark.parametrize("name", ["%2E", "a%2F..%2Fb", "%0A", "a%00b", "", "x" * 513])
def test_a_name_in_a_query_is_checked_as_one_in_an_address(http: httpx.Client, name: str) -> None:
    for query in ("later?stream=", "streams/a/dead?group="):
        told = problem(http.get(f"/v1/{query}{name}"), 422, "invalid")
        assert [one["parameter"] for one in told["errors"]] == [query.partition("?")[2].rstrip("=")]


def test_a_stream_with_groups_in_its_name_reaches_no_other_streams_letters(
    http: httpx.Client, store: redis_py.Redis
) -> None:
    of_group, _ = add_dead_letter(store, "a", "b", {"n": 1})
    of_stream, _ = add_dead_letter(store, "a/groups/b", "g", {"n": 2})
    odd = f"{V1}/a%2Fgroups%2Fb"
    assert [one["letter_id"] for one in http.get(f"{odd}/dead").json()["letters"]] == [of_stream]
    assert http.post(f"{odd}/dead:drop", json={"all": True}).json()["counts"] == {"dropped": 1}
    assert [one["letter_id"] for one in http.get(f"{V1}/a/groups/b/dead").json()["letters"]] == [of_group]
    problem(http.get(f"{V1}/a%2Fmessages"), 404, "not-found")
