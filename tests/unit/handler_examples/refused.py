"""Handlers that `supervisor start` refuses. Type checkers must refuse each line that ends in `# refused`."""

from collections.abc import AsyncIterator, Iterator

from pydantic import BaseModel

from supervisor import Message, handler


class Model(BaseModel):
    n: int


class Plain: ...


# case


@handler("s", group="g")  # refused
async def number(event: int) -> None: ...


# case


@handler("s", group="g")  # refused
async def text(event: str) -> None: ...


# case


@handler("s", group="g")  # refused
async def ints(event: dict[str, int]) -> None: ...


# case


@handler("s", group="g")  # refused
async def other_class(event: Plain) -> None: ...


# case


@handler("s", group="g")  # refused
async def strings(event: set[str]) -> None: ...


# case


@handler("s", group="g")  # refused
async def batch_of_numbers(events: list[int]) -> None: ...


# case


@handler("s", group="g")  # refused
async def nothing() -> None: ...


# case


@handler("s", group="g")  # refused
async def one_more(event: Model, other: int) -> None: ...


# case


@handler("s", group="g")  # refused
async def one_more_by_name(event: Model, *, other: int) -> None: ...


# case


@handler("s", group="g")  # refused
async def message_as_a_list(event: Model, message: list[Message]) -> None: ...


# case


@handler("s", group="g")  # refused
async def batch_with_one_message(events: list[Model], message: Message) -> None: ...


# case


@handler("s", group="g")  # refused
async def async_generator(event: Model) -> AsyncIterator[int]:
    yield 1


# case


@handler("s", group="g")  # refused
def generator(event: Model) -> Iterator[int]:
    yield 1


# case


@handler("s", group="g")  # refused
class Service: ...


# case


class WithMethod:
    @handler("s", group="g")  # refused
    async def method(self, event: Model) -> None: ...


# case


@handler("s", group="g", max_deliverys=3)  # refused
async def unknown_option(event: Model) -> None: ...


# case


@handler("s", group="g", timeout_s="3")  # refused
async def option_of_another_type(event: Model) -> None: ...


# case


@handler("s")  # refused
async def no_group(event: Model) -> None: ...
