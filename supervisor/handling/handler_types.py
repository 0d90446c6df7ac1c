"""What a type checker accepts below `@handler`: the signatures that the pool can call.

It refuses what `supervisor start` refuses: another type of the first parameter, a parameter for which nothing is
passed, a generator, a class, a method.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Concatenate, Protocol, TypeVar, overload

from pydantic import BaseModel

from supervisor.core.emit import Emit
from supervisor.messages import Message


class _Dataclass(Protocol):
    """A dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class _TypedDict(Protocol):
    """A TypedDict."""

    __required_keys__: ClassVar[frozenset[str]]
    __optional_keys__: ClassVar[frozenset[str]]


#: What one message may be given as.
Item = TypeVar("Item", bound="BaseModel | _Dataclass | _TypedDict | dict[str, str] | Mapping[str, str] | Message")
#: An `async def` may return anything, though only `Emit` means something; a plain `def` returns nothing or `Emit`.
Result = TypeVar("Result", bound="Awaitable[object] | Emit | Sequence[Emit] | None")


class Declare(Protocol):
    """The decorator that `handler(...)` returns: it gives back the function."""

    @overload
    def __call__(self, function: Callable[[Item], Result], /) -> Callable[Concatenate[Item, ...], Result]: ...
    @overload
    def __call__(
        self, function: Callable[[list[Item]], Result], /
    ) -> Callable[Concatenate[list[Item], ...], Result]: ...
    @overload
    def __call__(
        self, function: Callable[[Item, Message], Result], /
    ) -> Callable[Concatenate[Item, Message, ...], Result]: ...
    @overload
    def __call__(
        self, function: Callable[[list[Item], list[Message]], Result], /
    ) -> Callable[Concatenate[list[Item], list[Message], ...], Result]: ...
