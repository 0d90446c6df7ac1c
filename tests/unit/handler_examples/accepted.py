"""Handlers that the pool takes: type checkers must find no error here, and `supervisor start` none either."""

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from pydantic import BaseModel
from typing_extensions import TypedDict

from supervisor import Emit, Message, handler

P = ParamSpec("P")
R = TypeVar("R")


class Model(BaseModel):
    n: int


@dataclass
class Data:
    n: int


class Typed(TypedDict):
    n: int


class Partial(TypedDict, total=False):
    n: int


@handler("s", group="a")
async def model(event: Model) -> None: ...
@handler("s", group="b")
async def data(event: Data) -> None: ...
@handler("s", group="c")
async def typed(event: Typed) -> None: ...
@handler("s", group="c2")
async def part(event: Partial) -> None: ...
@handler("s", group="d", max_deliveries=3, timeout_s=1.5)
async def fields(event: dict[str, str]) -> None: ...
@handler("s", group="d2")
async def mapping(event: Mapping[str, str]) -> None: ...
@handler("s", group="e")
async def message(event: Message) -> None: ...
@handler("s", group="f")
async def models(events: list[Model]) -> None: ...
@handler("s", group="g")
async def messages(events: list[Message]) -> None: ...
@handler("s", group="h")
async def both(event: Model, message: Message) -> None: ...
@handler("s", group="i")
async def batch_both(events: list[Data], messages: list[Message]) -> None: ...
@handler("s", group="j")
def plain(event: Model) -> None: ...
@handler("s", group="k")
async def union(event: Model | Data) -> None: ...
@handler("s", group="l")
async def defaults(event: Model, retries: int = 3) -> int:
    return retries


def above(f: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    @functools.wraps(f)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return await f(*args, **kwargs)

    return wrapper


@handler("s", group="m")
@above
async def below_(event: Model) -> None: ...
@above
@handler("s", group="n")
async def above_(event: Model) -> None: ...


@handler("s", group="o")
@handler("s2", group="o")
async def twice(event: Model) -> None: ...


class Service:
    async def __call__(self, event: Model) -> None: ...
    async def method(self, event: Model) -> None: ...


called = handler("s", group="p")(Service())
bound = handler("s", group="q")(Service().method)


async def client_first(client: str, event: Model) -> None: ...


partial = handler("s", group="r")(functools.partial(client_first, "x"))


async def use() -> None:
    await model(Model(n=1))
    await defaults(Model(n=1), retries=4)
    await both(Model(n=1), Message("1-1", "s", "g"))


@handler("s", group="t")
async def emits(event: Model) -> Emit:
    return Emit("out", event)


@handler("s", group="u")
async def emits_several(event: Model, message: Message) -> list[Emit]:
    return [Emit("out", event), Emit("out", {"id": message.id})]


@handler("s", group="v")
async def may_emit(events: list[Model]) -> Emit | None:
    return Emit("out", events[0]) if events else None


@handler("s", group="w")
def plain_emits(event: Model) -> list[Emit]:
    return [Emit("out", Data(event.n))]


@handler("s", group="x")
def plain_may_emit(event: Model) -> Emit | None:
    return Emit("out", event) if event.n else None
