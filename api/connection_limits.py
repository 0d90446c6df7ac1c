"""Limits of a client's connection: what it may send, how long that may take, and how many there may be.

They hold before the token is looked at, so anybody who reaches the port meets them.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Limits:
    """The limits of all connections of a process."""

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


LIMITS = Limits()
#: How often the times are looked at.
TICK_S = 0.5
