"""JSON that FastAPI has read is parsed once more; a large body does not hold up other requests."""

import asyncio
from types import SimpleNamespace

import pytest
from fastapi import Request
from starlette.types import Message, Scope

from api.checked_body import no_member_twice
from api.json_body import AT_ONCE_BYTES
from api.problems import Problem


@pytest.mark.parametrize(("size", "others_run"), [(1, False), (AT_ONCE_BYTES, True)], ids=["small", "large"])
async def test_a_large_body_is_parsed_beside_the_event_loop(size: int, others_run: bool) -> None:
    body = b'{"text": "%b", "n": 1, "n": 2}' % (b"x" * size)
    other = asyncio.create_task(asyncio.sleep(0))
    with pytest.raises(Problem, match="two members 'n'"):
        await no_member_twice(request_with(body))
    assert other.done() == others_run
    await other


def request_with(body: bytes) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    headers = [(b"content-type", b"application/json")]
    scope: Scope = {"type": "http", "headers": headers, "route": SimpleNamespace(body_field=object())}
    return Request(scope, receive)
