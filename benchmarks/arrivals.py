"""Publishes at times that were fixed beforehand, whether the consumer keeps up or not (an open loop).

The times are those of a Poisson process with a fixed seed. Each entry carries the time for which it was
intended, and latencies are measured from that: a publisher that comes late adds its delay, as a queue in
front of it would. Commands are packed before the first one is due.
"""

import contextlib
import ctypes
import random
import socket
import sys
import time
from bisect import bisect_right
from pathlib import Path

_PR_SET_TIMERSLACK = 29
#: Until the first entry is due.
LEAD_S = 0.1
#: So much is sent at once at most.
CHUNK = 500
REPLY_LIMIT_S = 20.0


def schedule(rate: float, seconds: float, seed: int) -> list[int]:
    """Nanoseconds after the begin, in order."""
    chance = random.Random(seed)
    found, at = [], chance.expovariate(rate)
    while at < seconds:
        found.append(int(at * 1e9))
        at += chance.expovariate(rate)
    return found


def publish(address: str | Path, stream: str, offsets: list[int]) -> float:
    """Publish an entry at each time; by how many seconds the last one was late."""
    sharpen_timer()
    link = connect(address)
    begin_ns = time.monotonic_ns() + int(LEAD_S * 1e9) + len(offsets) * 2_000
    times = [begin_ns + offset for offset in offsets]
    commands = pack(stream, times)
    at, late_ns, answered = 0, 0, 0
    with link:
        while at < len(times):
            now_ns = time.monotonic_ns()
            due = min(bisect_right(times, now_ns, at), at + CHUNK)
            if due == at:
                time.sleep((times[at] - now_ns) / 1e9)
                continue
            late_ns = now_ns - times[due - 1]
            answered += send(link, b"".join(commands[at:due]))
            at = due
        link.setblocking(True)
        link.settimeout(REPLY_LIMIT_S)
        while answered < len(times):
            if not (reply := link.recv(1 << 16)):
                raise ConnectionError("the server closed the connection")
            answered += replies(reply)
    return late_ns / 1e9


def pack(stream: str, times: list[int]) -> list[bytes]:
    """An XADD for each time."""
    name = stream.encode()
    head = b"*5\r\n$4\r\nXADD\r\n$%d\r\n%s\r\n$1\r\n*\r\n$2\r\nat\r\n" % (len(name), name)
    return [head + b"$%d\r\n%d\r\n" % (len(str(at_ns)), at_ns) for at_ns in times]


def connect(address: str | Path) -> socket.socket:
    """To a unix socket, or to `host:port`."""
    if isinstance(address, Path) or address.startswith("/"):
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(address))
    else:
        host, _, port = address.rpartition(":")
        link = socket.create_connection((host, int(port)))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def send(link: socket.socket, data: bytes) -> int:
    """Send all of it; return how many replies had come by then."""
    link.setblocking(True)
    link.sendall(data)
    link.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        return replies(link.recv(1 << 16))
    return 0


def replies(data: bytes) -> int:
    """How many ids begin in there. Raises RuntimeError for an error."""
    if data[:1] == b"-" or b"\r\n-" in data:
        raise RuntimeError(f"XADD was refused: {data[:200]!r}")
    return data.count(b"$")


def sharpen_timer() -> None:
    """Have sleeps end on time; Linux otherwise ends them up to 50 microseconds late."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
