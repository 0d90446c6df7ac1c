"""HEAD is GET without the body, also where the body has no end."""

import asyncio
from typing import Any

import pytest
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.head_requests import AnswerHead

LEFT: list[str] = []


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """One route with a whole answer, one that goes on."""
    scope["route"] = "the route"
    assert scope["method"] in ("GET", "POST")
    if scope["path"] == "/broken":
        raise ZeroDivisionError
    if scope["path"] != "/endless":
        await PlainTextResponse(scope["method"], 200)(scope, receive, send)
        return

    async def pings() -> Any:
        try:
            while True:
                yield b": ping\n\n"
                await asyncio.sleep(0.001)
        finally:
            LEFT.append("left")

    await StreamingResponse(pings())(scope, receive, send)


async def answer(method: str, path: str) -> tuple[Scope, list[Any]]:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": method, "path": path, "headers": [], "asgi": {"spec_version": "2.3"}}
    await asyncio.wait_for(AnswerHead(app)(scope, receive, send), 30)
    return scope, sent


async def test_the_body_is_left_out_and_its_length_is_not() -> None:
    scope, (start, body) = await answer("HEAD", "/")
    assert (start["status"], dict(start["headers"])[b"content-length"]) == (200, b"3")
    assert (body["body"], body.get("more_body", False)) == (b"", False)
    assert (scope["method"], scope["route"]) == ("HEAD", "the route")


async def test_other_methods_are_left_alone() -> None:
    _, (_, body) = await answer("POST", "/")
    assert body["body"] == b"POST"


async def test_an_answer_without_end_ends_with_its_head() -> None:
    LEFT.clear()
    _, sent = await answer("HEAD", "/endless")
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert LEFT == ["left"]


async def test_errors_and_cancellations_go_through() -> None:
    with pytest.raises(ZeroDivisionError):
        await answer("HEAD", "/broken")
