"""Bodies within their limit, plain and gzip."""

import asyncio
import gzip
import zlib
from typing import Any

import pytest

from api.bounded_body import bounded, check_length
from api.problems import Problem

GZIP = {b"content-encoding": b"gzip"}


def read(data: bytes, headers: dict[bytes, bytes], most: int, *, step: int = 1000) -> tuple[bytes, int]:
    """Return the body and the size of its largest piece."""
    pieces = [data[at : at + step] for at in range(0, len(data), step)] or [b""]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def whole() -> tuple[bytes, int]:
        found, largest, more = b"", 0, True
        take = bounded(receive, headers, most)
        while more:
            message = await take()
            more, found = message["more_body"], found + message["body"]
            largest = max(largest, len(message["body"]))
        return found, largest

    return asyncio.run(whole())


@pytest.mark.parametrize("step", [1, 1_000_000])
@pytest.mark.parametrize("data", [b"", b"{}", bytes(range(256)) * 3000], ids=["empty", "small", "large"])
def test_a_body_arrives_whole(data: bytes, step: int) -> None:
    assert step == 1 or read(data, {}, len(data), step=step)[0] == data
    assert read(gzip.compress(data), GZIP, max(len(data), 100), step=step)[0] == data


def test_members_that_follow_each_other_are_one_body() -> None:
    assert read(gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two"), GZIP, 1000)[0] == b"one two"


def test_a_body_is_unpacked_no_further_than_its_limit() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(Problem, match="at most 1000000"):
        read(bomb, GZIP, 1_000_000)
    found, largest = read(gzip.compress(bytes(1_000_000)), GZIP, 1_000_000)
    assert len(found) == 1_000_000 and largest <= 256 * 1024


NOT_GZIP = [b"{}", b"", gzip.compress(b"{}" * 1000)[:-1], gzip.compress(b"{}") + b"tail", zlib.compress(b"{}")]


@pytest.mark.parametrize("data", NOT_GZIP, ids=range(len(NOT_GZIP)))
def test_what_is_not_gzip_is_refused(data: bytes) -> None:
    with pytest.raises(Problem) as raised:
        read(data, GZIP, 100_000)
    assert raised.value.kind == "bad-request" and "not gzip" in raised.value.detail


def test_other_encodings_and_lengths_are_refused() -> None:
    for headers in ({}, {b"content-encoding": b"identity"}, GZIP, {b"content-length": b"10"}):
        assert check_length(headers, 10) is None
    refused = check_length({b"content-encoding": b"br"}, 10)
    assert refused is not None and refused.kind == "media-type" and refused.headers["Accept-Encoding"] == "gzip"  # type: ignore[index]
    for length in (b"11", b"-1", b"x"):
        refused = check_length({b"content-length": length}, 10)
        assert refused is not None and refused.kind == "body-too-large"
