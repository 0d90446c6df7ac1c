"""Entries of any age, for tests of retention."""

from typing import Any

STREAM = "events"
AGE_S = 3600
Id = tuple[int, int]


def order(entry: bytes) -> Id:
    ms, _, seq = entry.partition(b"-")
    return int(ms), int(seq)


def ids(client: Any) -> list[Id]:
    return [order(entry) for entry, _ in client.xrange(STREAM)]


def now_ms(client: Any) -> int:
    seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000


def add(client: Any, count: int, age_s: float = 0, first: int = 0) -> list[bytes]:
    """Entries that are so old, by the server's clock."""
    ms = now_ms(client) - int(age_s * 1000)
    pipe = client.pipeline(transaction=False)
    for number in range(first, first + count):
        pipe.xadd(STREAM, {"n": number}, id=f"{ms}-{number}")
    return list(pipe.execute())


def read(client: Any, group: str, count: int, *, ack: bool = True) -> list[bytes]:
    reply = client.xreadgroup(group, "c", {STREAM: ">"}, count=count)
    found = [entry for entry, _ in reply[0][1]] if reply else []
    if ack and found:
        client.xack(STREAM, group, *found)
    return found
