"""What the handlers do: one definition for the pool and for the loops that it is compared with.

A workload names the fields of an entry, how many entries make a backlog of about a second, the
handler that the pool runs, and what a loop without the pool does with the same entry.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel

from supervisor import Message

#: About 100 bytes.
FIELDS = {
    "event_type": "user_created",
    "user_id": "1234567",
    "email": "user1234567@example.com",
    "timestamp": "2026-01-01T00:00:00Z",
}
CPU_S = 0.001
WAIT_S = 0.010


class UserCreated(BaseModel):
    """The four fields."""

    event_type: str
    user_id: int
    email: str
    timestamp: str


class Line(BaseModel):
    """One of an order's lines."""

    sku: str
    title: str
    quantity: int
    price: float


class OrderBody(BaseModel):
    """Some 2,000 bytes of JSON."""

    order: int
    customer: str
    note: str
    lines: list[Line]


class OrderPlaced(BaseModel):
    """An entry whose one large field is JSON."""

    kind: str
    body: OrderBody


BODY = OrderBody(
    order=1234567,
    customer="Ada Lovelace, 12 St James's Square, London",
    note="Please ring twice. " * 6,
    lines=[Line(sku=f"SKU-{n:06}", title=f"Analytical part no. {n:03}", quantity=n, price=n * 1.25) for n in range(22)],
)
JSON_FIELDS = {"kind": "order_placed", "body": BODY.model_dump_json()}


async def message(event: Message) -> None:
    """Do nothing."""


async def mapping(event: dict[str, str]) -> None:
    """Do nothing."""


async def model(event: UserCreated) -> None:
    """Do nothing with a validated model."""


async def order(event: OrderPlaced) -> None:
    """Do nothing with a validated model of 2 kB."""


async def cpu(event: Message) -> None:
    """Hold a core for a millisecond of CPU time."""
    burn()


async def wait(event: Message) -> None:
    """Wait as for an answer from elsewhere."""
    await asyncio.sleep(WAIT_S)


async def batch_message(events: list[Message]) -> None:
    """Do nothing with a batch."""


async def batch_mapping(events: list[dict[str, str]]) -> None:
    """Do nothing with a batch."""


async def batch_model(events: list[UserCreated]) -> None:
    """Do nothing with a batch of validated models."""


def burn() -> None:
    """A millisecond of CPU time; of wall time, if nothing else runs."""
    until = time.thread_time_ns() + int(CPU_S * 1e9)
    while time.thread_time_ns() < until:
        pass


# What a loop does with an entry's fields, as bytes


async def ignore(fields: dict[bytes, bytes]) -> None:
    """As `message`: the fields are not looked at."""


async def decode(fields: dict[bytes, bytes]) -> None:
    """As `mapping`."""
    {name.decode(): value.decode() for name, value in fields.items()}


async def validate(fields: dict[bytes, bytes]) -> None:
    """As `model`."""
    UserCreated.model_validate({name.decode(): value.decode() for name, value in fields.items()})


async def validate_order(fields: dict[bytes, bytes]) -> None:
    """As `order`."""
    kind, body = fields[b"kind"].decode(), orjson.loads(fields[b"body"])
    OrderPlaced.model_validate({"kind": kind, "body": body})


async def compute(fields: dict[bytes, bytes]) -> None:
    """As `cpu`."""
    burn()


async def sleep(fields: dict[bytes, bytes]) -> None:
    """As `wait`."""
    await asyncio.sleep(WAIT_S)


@dataclass(frozen=True)
class Workload:
    """One kind of work."""

    #: As the tables name it.
    title: str
    handler: Callable[[Any], Awaitable[None]]
    #: What the redis-py loop awaits for each entry.
    work: Callable[[dict[bytes, bytes]], Awaitable[None]]
    entries: int
    fields: dict[str, str] = field(default_factory=lambda: FIELDS)
    options: dict[str, Any] = field(default_factory=dict)
    #: How many handlers a loop runs at once.
    at_once: int = 1
    #: Messages a second of one worker that arithmetic allows; 0: there is no such limit.
    limit: float = 0.0


def _waiting(concurrency: int, entries: int) -> Workload:
    return Workload(
        f"10 ms of await, concurrency {concurrency:,}",
        wait,
        sleep,
        entries,
        options={"concurrency": concurrency},
        at_once=concurrency,
        limit=concurrency / WAIT_S,
    )


WORKLOADS = {
    "message": Workload("no-op, Message", message, ignore, 150_000),
    "dict": Workload("no-op, dict[str, str]", mapping, decode, 150_000),
    "model": Workload("pydantic model, 4 fields", model, validate, 75_000),
    "order": Workload("pydantic model, 2 kB of JSON", order, validate_order, 20_000, JSON_FIELDS),
    "cpu": Workload("1 ms of CPU", cpu, compute, 1_000, limit=1 / CPU_S),
    "wait100": _waiting(100, 7_500),
    "wait1000": _waiting(1_000, 60_000),
    "messages": Workload("batch, list[Message]", batch_message, ignore, 150_000),
    "dicts": Workload("batch, list[dict[str, str]]", batch_mapping, decode, 150_000),
    "models": Workload("batch, list of pydantic models", batch_model, validate, 75_000),
}
