"""The connections of a process: limits their number and their times.

A connection beyond the limit takes the place of the one that has waited longest for a request. Where all are busy, it
is served only if it is a probe. The limit follows the free descriptors, so that others who use them up take none of
those that probes need.

The limits hold before the token is looked at, so they apply to everybody who reaches the port.
"""

import asyncio
import os
import resource
from dataclasses import dataclass
from typing import Any, Protocol

from supervisor.log import Limiter


@dataclass(slots=True)
class ConnectionLimits:
    """What a client may send, how long that may take, and how many connections there may be."""

    #: The request line and the headers.
    head_bytes: int = 64 * 1024
    headers: int = 100
    #: From the connection, or the first byte of a further request, to the end of the head.
    head_s: float = 10.0
    #: A body must arrive at this rate; the grace is added once.
    body_grace_s: float = 10.0
    body_bytes_per_s: float = 1000.0
    #: A connection on which no request is under way.
    idle_s: float = 5.0
    #: The rest of a body whose request was already answered.
    discard_s: float = 2.0
    #: A client that takes nothing of its answer.
    unread_s: float = 30.0
    #: The time in which a refused client can read the refusal.
    linger_s: float = 1.0
    #: All bytes that were read ahead of what is handled, of all connections.
    buffered_bytes: int = 32 * 1024 * 1024
    connections: int = 4000
    #: Further connections, which are answered only if they are probes.
    for_probes: int = 32


LIMITS = ConnectionLimits()
#: How often the times are looked at.
TICK_S = 0.5
#: Free descriptors that connections leave for everything else: Redis, the arbiter's socket, the project's routes.
_SPARE_MAX = 64
_SPARE_SHARE = 4


class Connection(Protocol):
    """What this module needs of a connection."""

    def check(self, now_s: float) -> None:
        """End the connection if its time is over."""

    def give_way(self) -> None:
        """End the connection at once, since its place is needed."""


class Connections:
    """All connections of a process."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._limiter = Limiter()
        self._all: set[Connection] = set()
        #: Those without a complete head, oldest first. It is a dict for its order.
        self.waiting: dict[Connection, None] = {}
        #: Those with bytes that are not handled yet, oldest first.
        self._buffered: dict[Connection, int] = {}
        self._buffered_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limit = LIMITS.connections

    def add(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> bool:
        """Take in a connection; return whether it may send any request, or only a probe."""
        if self._loop is not loop:
            self._loop = loop
            self._tick()
        self._all.add(connection)
        self.waiting[connection] = None
        if len(self._all) <= self._limit:
            return True
        oldest = next(iter(self.waiting))
        if oldest is not connection:
            self._drop(oldest)
            return True
        if len(self._all) > self._limit + LIMITS.for_probes:
            self._drop(connection)
        return False

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._all.discard(connection)
        self.waiting.pop(connection, None)
        self.buffer(connection, 0)

    def buffer(self, connection: Connection, size: int) -> None:
        """Note how many bytes of a connection are held; the oldest holders are dropped where all hold too much."""
        self._buffered_bytes += size - self._buffered.pop(connection, 0)
        if size:
            self._buffered[connection] = size
        while self._buffered_bytes > LIMITS.buffered_bytes:
            self._drop(next(iter(self._buffered)))

    def refused(self, kind: str, detail: str = "") -> None:
        """Log that a request was refused: each kind once in five seconds, with how many lines were left out."""
        repeated = self._limiter.held_back(kind)
        if repeated is not None:
            self._log.warning("request refused", kind=kind, detail=detail or None, repeated=repeated or None)

    def _drop(self, connection: Connection) -> None:
        repeated = self._limiter.held_back("dropped")
        if repeated is not None:
            self._log.warning(
                "connection dropped", connections=len(self._all), limit=self._limit, repeated=repeated or None
            )
        self.remove(connection)
        connection.give_way()

    def _tick(self) -> None:
        assert self._loop is not None
        self._loop.call_later(TICK_S, self._tick)
        now_s = self._loop.time()
        for connection in list(self._all):
            connection.check(now_s)
        self._limit = _limit(len(self._all))
        while len(self._all) > self._limit and self.waiting:
            self._drop(next(iter(self.waiting)))


def _limit(open_now: int) -> int:
    """Return how many connections there may be, while `open_now` are open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return LIMITS.connections
    try:
        free = soft - len(os.listdir("/dev/fd"))
    except OSError:  # no descriptor is left to look with
        free = 0
    return max(1, min(LIMITS.connections, open_now + free - min(_SPARE_MAX, soft // _SPARE_SHARE)))
