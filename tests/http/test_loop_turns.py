"""A large batch never holds the event loop, on which all other requests and the probes wait."""

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api import app as api_app
from supervisor.publisher import BATCH_MAX
from supervisor.settings.load import load
from tests.http.service import HANDLERS, STREAM

BYTES = 1_500
#: CPU time of one call of the loop.
HELD_MAX_S = 0.04
PIECE = 64 * 1024
MESSAGES = [{"number": str(number), "data": "x" * BYTES} for number in range(BATCH_MAX)]
ARRAY = (json.dumps(MESSAGES).encode(), b"application/json")
LINES = ("\n".join(map(json.dumps, MESSAGES)).encode(), b"application/x-ndjson")
KEY = (b"idempotency-key", b'"17"')


class Turns:
    """How long the calls of the loop took, by CPU time, which other processes do not lengthen."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.longest = ""

    @contextmanager
    def measured(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Measure each call until the end."""
        run = asyncio.events.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            name = repr(getattr(handle._callback, "__self__", handle._callback))[:300]
            began_s = time.thread_time()
            run(handle)
            held_s = time.thread_time() - began_s
            if held_s > self.longest_s:
                self.longest_s, self.longest = held_s, name

        gc.collect()
        gc.disable()  # what the tests before this one have left would be looked through
        try:
            with monkeypatch.context() as patch:
                patch.setattr(asyncio.events.Handle, "_run", timed)
                yield
        finally:
            gc.enable()


async def post(app: Any, body: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[int, dict[str, Any]]:
    """Hand a batch to the app in pieces, as the server does; return the status and the answer."""
    path = f"/v1/streams/{STREAM}/messages:batch"
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    begin, status, answer = 0, 0, b""

    async def receive() -> dict[str, Any]:
        nonlocal begin
        await asyncio.sleep(0)
        piece = body[begin : begin + PIECE]
        begin += PIECE
        return {"type": "http.request", "body": piece, "more_body": begin < len(body)}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, answer
        status = message.get("status", status)
        answer += message.get("body", b"")

    await app(scope, receive, send)
    await asyncio.sleep(0)  # what this test does with the answer is not the app's
    return status, json.loads(answer)


@pytest.mark.parametrize(
    ("sent", "keyed"),
    [
        pytest.param(ARRAY, False, id="array"),
        pytest.param(ARRAY, True, id="keyed"),
        pytest.param(LINES, False, id="lines", marks=pytest.mark.long),
        pytest.param(LINES, True, id="keyed-lines", marks=pytest.mark.long),
    ],
)
async def test_a_large_batch_never_holds_the_loop(
    redis: Any, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: tuple[bytes, bytes], keyed: bool
) -> None:
    monkeypatch.setattr(api_app, "_stop_on_signal", lambda _: None)
    monkeypatch.setenv("SUPERVISOR_REDIS__URL", redis_url)
    (tmp_path / "handlers.py").write_text(HANDLERS)
    (tmp_path / "config.toml").write_text("[api]\nproduce_timeout_ms = 10000\n")
    app = api_app.create_app(load(tmp_path / "config.toml"))
    turns, (body, media_type) = Turns(), sent
    headers = [(b"host", b"localhost"), (b"content-type", media_type)]
    async with app.router.lifespan_context(app):
        await asyncio.gather(*(snapshot.get(30) for snapshot in app.state.service._snapshots))  # imports the handlers
        with turns.measured(monkeypatch):
            status, answer = await post(app, body, headers + [KEY] * keyed)
    assert (status, answer["count"]) == (202, BATCH_MAX)
    assert await redis.xlen(STREAM) == BATCH_MAX
    assert turns.longest_s < HELD_MAX_S, turns.longest
