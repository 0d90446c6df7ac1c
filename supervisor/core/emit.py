"""`Emit`: a message that a handler returns, to be published together with the ack of the message in hand. Pure."""

from collections.abc import Mapping
from inspect import isawaitable, iscoroutine
from typing import Any

from supervisor.core.encode import fields_of
from supervisor.core.field_text import Value
from supervisor.errors import EncodeError, UsageError

#: Keeps the script that publishes them quick.
EMITS_MAX = 1_000


class Emit:
    """A message to publish: `return Emit("stream", fields)`, or a list of them.

    It is published when the message in hand is acked, in one step: both happen, once, or neither. It is encoded here,
    as a publisher would encode it.
    """

    __slots__ = ("fields", "stream")

    def __init__(self, stream: str, message: Any) -> None:
        """Encode the message: a mapping, a pydantic model or a dataclass.

        Raises EncodeError, which names the stream and the field, and UsageError for what can't be a stream's name.
        """
        self.stream = stream
        #: As they are stored.
        self.fields = fields_for(stream, message, "Emit")

    def __eq__(self, other: object) -> bool:
        """Whether both would store the same fields in the same stream, for tests of handlers."""
        if not isinstance(other, Emit):
            return NotImplemented
        return self.stream == other.stream and dict(self.fields) == dict(other.fields)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the stream and the names of the fields; their values may be private."""
        return f"Emit({self.stream!r}, fields {', '.join(self.fields)})"


def fields_for(stream: object, message: Any, what: str) -> Mapping[str, Value]:
    """Return the fields of a message that is published later. Errors begin with `what`; raises as `Emit` does."""
    if not isinstance(stream, str) or not stream:
        raise UsageError(f"{what}: the stream must be a string that is not empty, not {stream!r}")
    try:
        stream.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what}: stream {stream!r}: not Unicode: {error.reason}") from None
    try:
        return fields_of(message)
    except EncodeError as error:
        raise EncodeError(f"{what} to {stream!r}: {error}", error.field) from None


def emits_in(result: object) -> list[Emit]:
    """Return what a handler's result publishes; nothing for a result of another kind, which is ignored.

    Raises UsageError for a list that mixes `Emit` with other things, for too many, and for what nobody has awaited.
    """
    if isawaitable(result):
        if iscoroutine(result):
            result.close()
        raise UsageError(f"the handler returned a {type(result).__name__} that nobody awaits: write `await`")
    if isinstance(result, Emit):
        return [result]
    if not isinstance(result, list | tuple):
        return []
    emits = [one for one in result if isinstance(one, Emit)]
    if emits and len(emits) < len(result):
        other = next(one for one in result if not isinstance(one, Emit))
        raise UsageError(f"a list of Emit has a {type(other).__name__} among them")
    if len(emits) > EMITS_MAX:
        raise UsageError(f"{len(emits)} Emits at once: at most {EMITS_MAX} are allowed")
    return emits
