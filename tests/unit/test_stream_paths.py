"""The address of a stream is split into names in one way, in linear time, and only where it is UTF-8."""

import time

import pytest

from api.stream_paths import NameConvertor, is_utf8, with_single_segments

V1 = "/v1/streams/"


def split(encoded: str, root_path: str = "") -> str:
    path = f"{root_path}{V1}{encoded}"
    return with_single_segments(path.encode(), root_path, path).removeprefix(root_path + V1)


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("a%2Fb/messages", "a%2Fb/messages"),
        ("a/b/messages", "a%2Fb/messages"),
        ("a%3Ab%20c/messages%3Abatch", "a:b c/messages:batch"),
        ("100%25/messages/1-0", "100%25/messages/1-0"),
        ("%252F/messages", "%252F/messages"),
        ("a/messages/b/messages/1-0/explain", "a%2Fmessages%2Fb/messages/1-0/explain"),
        ("a/later/b/later/x/explain", "a%2Flater%2Fb/later/x/explain"),
        ("a/groups/g/dead", "a/groups/g/dead"),
        ("a%2Fgroups%2Fg/dead", "a%2Fgroups%2Fg/dead"),
        ("a/groups/b/groups/g/dead/1-0", "a%2Fgroups%2Fb/groups/g/dead/1-0"),
        ("a/groups/g%2Fgroups%2Fh/dead:drop", "a/groups/g%2Fgroups%2Fh/dead:drop"),
        ("a/groups/g/h/dead", "a/groups/g%2Fh/dead"),
        ("groups/g/dead", "groups%2Fg/dead"),
        ("a/groups/dead", "a%2Fgroups/dead"),
        ("a/groups/b/messages", "a%2Fgroups%2Fb/messages"),
        ("a/b/messages/1-0%2Fexplain", "a%2Fb/messages/1-0%2Fexplain"),
        ("a%2Fmessages", "a%2Fmessages"),
        ("a/b/c", "a/b/c"),
        ("messages/1-0/explain", "messages/1-0/explain"),
        ("/messages", "/messages"),
    ],
)
def test_names_are_single_segments(sent: str, path: str) -> None:
    assert split(sent) == split(sent, "/prefix") == path


@pytest.mark.parametrize("name", ["a", "a/b", "%", "%2F", "%25", "a/groups/b", "ä ö"])
def test_a_segment_is_its_name_again(name: str) -> None:
    segment = NameConvertor().to_string(name)
    assert "/" not in segment and NameConvertor().convert(segment) == name


def test_other_addresses_stay() -> None:
    assert with_single_segments(b"/orders/a%2Fb", "", "/orders/a/b") == "/orders/a/b"
    assert with_single_segments(b"/other/v1/streams/a%2Fb/messages", "", "x") == "x"


@pytest.mark.parametrize("path", ["groups//" * 4_000 + "dead", "a/groups/" * 4_000 + "dead:drop", "%2F" * 10_000])
def test_a_long_address_is_split_in_linear_time(path: str) -> None:
    began_s = time.process_time()
    split(path)
    assert time.process_time() - began_s < 0.05


@pytest.mark.parametrize(
    ("path", "query", "good"),
    [(b"/a", b"", True), (b"/%C3%A4", b"g=%C3%A4", True), (b"/%ff", b"", False), (b"/a", b"group=%fe", False),
     (b"/\xff", b"", False), (b"/%ed%a0%80", b"", False), (b"/%", b"%zz", True)],
)  # fmt: skip
def test_an_address_must_be_utf8(path: bytes, query: bytes, good: bool) -> None:
    assert is_utf8({"raw_path": path, "query_string": query}) is good
