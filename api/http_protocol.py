"""The server's side of a connection: uvicorn's httptools protocol, with limits.

uvicorn's own protocols lack these limits. h11 limits only the size of an unfinished head, and parses a request at a
tenth of the speed of httptools. The parser need not know of the limits: bytes are counted before it gets them.

1. The parser gets the bytes of one request at a time. What follows is held, and not read from the socket, until the
   request is answered.
2. Pieces are small, so an unfinished head is refused soon after it is too large.
3. Times are looked at by `Connections` twice a second. A timer for every request would cost more.
"""

import asyncio
import contextvars
import enum
import math
from collections.abc import Callable
from typing import Any

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .connections import LIMITS, TICK_S, Connections
from .http_figures import HttpFigures
from .problems import Problem, response
from .request_guard import PROBES

_HEAD_END = b"\r\n\r\n"
_HEAD_PIECE = 16 * 1024
_BODY_PIECE = 64 * 1024
#: Requests that may follow a chunked body in one piece: only the parser knows where the body ends.
_PIPELINE_MAX = 16
#: Bytes of chunk sizes and the like for each byte of a body; a byte in a chunk of its own has five.
_FRAMING = 8


class _Phase(enum.Enum):
    #: No request is under way.
    IDLE = enum.auto()
    #: Some of a head has come.
    HEAD = enum.auto()
    BODY = enum.auto()
    #: A whole request is handled.
    BUSY = enum.auto()
    #: The client was refused; what it sends is not looked at.
    REFUSED = enum.auto()


class _Flow(FlowControl):
    """Continues with the bytes that are held before it reads more."""

    def __init__(self, transport: asyncio.Transport, proceed: Callable[[], None]) -> None:
        super().__init__(transport)
        self._proceed = proceed
        self._stopped = False

    def pause_reading(self) -> None:
        self.read_paused = True
        self.stop()

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._proceed()

    def stop(self) -> None:
        """Read no more from the socket."""
        if not self._stopped:
            self._stopped = True
            self._transport.pause_reading()

    def start(self) -> None:
        """Read from the socket, unless the request takes no more."""
        if self._stopped and not self.read_paused and not self._transport.is_closing():
            self._stopped = False
            self._transport.resume_reading()


def protocol(log: Any, figures: HttpFigures) -> Callable[..., asyncio.Protocol]:
    """Return what makes the protocol of each connection, for uvicorn's `http`. Refusals are counted in `figures`."""
    connections = Connections(log)

    def make(**options: Any) -> BoundedProtocol:
        return BoundedProtocol(connections, figures, **options)

    return make


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    flow: _Flow

    def __init__(self, connections: Connections, figures: HttpFigures, **options: Any) -> None:
        super().__init__(**options)
        self._connections = connections
        self._figures = figures
        self._phase = _Phase.IDLE
        #: Beyond the limit: it serves only probes.
        self._is_spare = False
        #: By the loop's clock: when the connection ends unless something happens.
        self._deadline_s = math.inf
        #: What was received, and how much of it the parser has got.
        self._data = b""
        self._at = 0
        self._parsing = False
        self._context = contextvars.copy_context()
        #: Bytes of the head that is not complete, and the last of them.
        self._head_bytes = 0
        self._head_tail = b""
        #: Bytes of the body and of its framing, its start, and what is still to come where the head says it.
        self._body_bytes = 0
        self._framing_bytes = 0
        self._body_since_s = 0.0
        self._body_left: int | None = None
        self._trailers = 0
        #: The size of the answers that the client does not take, and since when.
        self._unread_bytes = 0
        self._unread_since_s = 0.0
        self._leaving = False

    # Events of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for the first head."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self._proceed)
        self._deadline_s = self.loop.time() + LIMITS.head_s
        if not self._connections.add(self, self.loop):
            self._is_spare = True
            self._connections.refused("busy", "too many connections")
            self.app = _probes_only(self.app, self._figures)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._connections.remove(self)
        self._data, self._at = b"", 0
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse as much as may be handled now."""
        if self._phase is _Phase.REFUSED:
            return
        self._data = self._data[self._at :] + data if self._data else data
        self._at = 0
        self._proceed()

    def _proceed(self) -> None:
        """Give the parser what is held, up to the end of a request."""
        if self._parsing or self.parser is None:
            return
        self._parsing = True
        try:
            while self._at < len(self._data) and not self._is_full():
                begin = self._at
                self._at = self._next_end()
                self._parse(self._data[begin : self._at])
        finally:
            self._parsing = False
        if self._phase is _Phase.REFUSED or self._at >= len(self._data):
            if self._data:
                self._data, self._at = b"", 0
                self._connections.buffer(self, self._head_bytes)
            self.flow.start()
        else:
            self._connections.buffer(self, len(self._data))
            self.flow.stop()

    def _is_full(self) -> bool:
        """Return whether what comes next has to wait: for an answer, or for the reader of the body."""
        return self._phase in (_Phase.BUSY, _Phase.REFUSED) or (self._phase is _Phase.BODY and self.flow.read_paused)

    def _next_end(self) -> int:
        """Return the end of the next piece for the parser: it never contains parts of two requests, if possible."""
        data, begin = self._data, self._at
        if self._phase is _Phase.BODY:
            return begin + min(self._body_left or _BODY_PIECE, _BODY_PIECE)
        most = begin + _HEAD_PIECE
        if self._head_tail:
            at = (self._head_tail + data[begin : begin + 3]).find(_HEAD_END)
            if at >= 0:
                return begin + at + len(_HEAD_END) - len(self._head_tail)
        at = data.find(_HEAD_END, begin, most)
        return min(most, len(data)) if at < 0 else at + len(_HEAD_END)

    def _parse(self, piece: bytes) -> None:
        if self._phase is _Phase.BODY:
            self._framing_bytes += len(piece)
        else:
            self._head_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._upgrade()
            return
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, Problem) else Problem("bad-request", _reason(error)))
            return
        if self._phase in (_Phase.IDLE, _Phase.HEAD):
            self._head_tail = (self._head_tail + piece[-3:])[-3:]
            if self._head_bytes > LIMITS.head_bytes + _HEAD_PIECE or len(self.headers or ()) > LIMITS.headers:
                self._refuse(_head_too_large())
        elif self._framing_bytes > LIMITS.head_bytes + _FRAMING * self._body_bytes:
            self._refuse(Problem("bad-request", "too much around too little of a body"))

    def _upgrade(self) -> None:
        if self._should_upgrade() and not self._is_spare:
            self._connections.remove(self)
            self._phase = _Phase.REFUSED
            self.handle_websocket_upgrade()
        elif self._is_spare:
            self._refuse(Problem("busy", "too many connections"))
        else:
            self._connections.refused("upgrade", "only to websocket")
            # The parser has left out the body, which would be taken for a request.
            self.cycle.keep_alive = False

    # Events of the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header. Trailers come too late for the request, which is handled already."""
        if self._phase is not _Phase.HEAD:
            self._trailers += 1
            if self._trailers > LIMITS.headers:
                raise _head_too_large()
            return
        name = name.lower()
        if name == b"content-length" and value.isdigit():
            self._body_left = int(value)
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_message_begin(self) -> None:
        """Prepare for a head."""
        super().on_message_begin()
        self._phase = _Phase.HEAD
        if self.cycle is not None:  # the time for the first head began with the connection
            self._deadline_s = self.loop.time() + LIMITS.head_s
        self._body_left = None
        self._body_bytes = self._framing_bytes = self._trailers = 0

    def on_headers_complete(self) -> None:
        """Refuse a head that is too large, or start to handle the request."""
        if len(self.headers) > LIMITS.headers or self._head_size() > LIMITS.head_bytes:
            raise _head_too_large()
        if len(self.pipeline) >= _PIPELINE_MAX:
            raise Problem("bad-request", "too many requests in a row behind a chunked body")
        self._head_bytes, self._head_tail = 0, b""
        self._connections.waiting.pop(self, None)
        self._phase = _Phase.BODY
        self._body_since_s = self.loop.time()
        self._deadline_s = math.inf
        super().on_headers_complete()

    def _head_size(self) -> int:
        if self._head_bytes <= LIMITS.head_bytes:
            return 0  # small enough, whatever it is
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        """Hand on a part of the body."""
        self._body_bytes += len(body)
        self._framing_bytes -= len(body)
        if self._body_left is not None:
            self._body_left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the answer before the next request is looked at."""
        super().on_message_complete()
        self._phase = _Phase.BUSY
        if self.cycle is not None and self.cycle.response_complete:
            self._wait_for_request()

    # The end of an answer

    def on_response_complete(self) -> None:
        """Continue with what the client has sent in the meantime, or wait for it."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._phase is _Phase.BODY:
            self._deadline_s = self.loop.time() + LIMITS.discard_s
        elif self._phase is _Phase.BUSY:
            self._wait_for_request()
        else:
            self._connections.waiting[self] = None
        if self._data or self.flow.read_paused:
            self.flow.read_paused = False
            # Not within the context of the request that was answered.
            self.loop.call_soon(self._proceed, context=self._context)

    def _wait_for_request(self) -> None:
        self._phase = _Phase.IDLE
        self._deadline_s = self.loop.time() + LIMITS.idle_s
        self._connections.waiting[self] = None

    # Limits

    def check(self, now_s: float) -> None:
        """End the connection if its time is over."""
        if self._is_unread(now_s):
            self.transport.abort()
        elif self.transport.is_closing():
            return
        elif now_s > self._deadline_s:
            if self._phase is _Phase.HEAD:
                self._refuse(Problem("too-slow", f"the head took longer than {LIMITS.head_s:g} s"))
            else:
                self.transport.close()
        elif self._phase is _Phase.BODY and not self.cycle.response_complete:
            if self.flow.read_paused or self.cycle.waiting_for_100_continue:
                self._body_since_s += TICK_S  # the client waits for this service
            elif now_s - self._body_since_s > LIMITS.body_grace_s + self._body_bytes / LIMITS.body_bytes_per_s:
                self._refuse(Problem("too-slow", f"a body needs {LIMITS.body_bytes_per_s:g} bytes a second"))

    def _is_unread(self, now_s: float) -> bool:
        if (size := self.transport.get_write_buffer_size()) != self._unread_bytes:
            self._unread_bytes, self._unread_since_s = size, now_s
        return size > 0 and now_s - self._unread_since_s > (LIMITS.linger_s if self._leaving else LIMITS.unread_s)

    def shutdown(self) -> None:
        """End the connection after its answer. A client that does not take the answer must not delay the end."""
        self._leaving = True
        super().shutdown()

    def give_way(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    def _refuse(self, problem: Problem) -> None:
        """Answer with the problem, unless another answer has begun, and end the connection."""
        self._connections.refused(problem.kind, problem.detail)
        cycle = self.cycle
        in_body = self._phase is _Phase.BODY
        self._phase = _Phase.REFUSED
        self._data, self._at, self._head_bytes = b"", 0, 0
        self._connections.buffer(self, 0)
        if cycle is not None and not cycle.response_complete:
            if not in_body:  # the requests before this one are still handled
                cycle.keep_alive = False
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        self._answer(problem)
        # Closed at once, a connection with unread bytes is reset, and the answer may be lost.
        self._deadline_s = self.loop.time() + LIMITS.linger_s
        self._connections.waiting[self] = None
        self.flow.read_paused = False
        self.flow.start()

    def _answer(self, problem: Problem) -> None:
        path = getattr(self, "url", b"").partition(b"?")[0]
        scope = {"scheme": self.scheme, "server": self.server, "headers": self.headers or ()}
        answer = response({**scope, "path": path.decode("latin-1"), "raw_path": path}, problem)
        _count(self._figures, {}, problem)
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[answer.status_code] + lines + b"\r\n" + bytes(answer.body))
        if self.transport.can_write_eof():
            self.transport.write_eof()


def _head_too_large() -> Problem:
    return Problem("head-too-large", f"a head has at most {LIMITS.headers} headers and {LIMITS.head_bytes // 1024} kB")


def _reason(error: Exception) -> str:
    """Return what the parser says, without what the client has sent."""
    return str(error) if type(error) is not httptools.HttpParserCallbackError else "the address can't be read"


def _count(figures: HttpFigures, scope: Scope, problem: Problem) -> None:
    """Count an answer that the app does not see."""
    figures.refused(problem.kind)
    figures.answered(scope, problem.status_code)


def _probes_only(app: Any, figures: HttpFigures) -> Callable[[Scope, Receive, Send], Any]:
    """Return the app of a connection beyond the limit."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            await app(scope, receive, send)
        else:
            problem = Problem("busy", "too many connections", headers={"Connection": "close"})
            _count(figures, scope, problem)
            await response(scope, problem)(scope, receive, send)

    return answer
