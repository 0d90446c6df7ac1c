"""What a worker keeps of a message. `_entries.c` has the same class, which keeps its fields as one piece of memory."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from supervisor import compiled

_decode = bytes.decode


class MessageSource(Protocol):
    """Where a message comes from."""

    @property
    def stream(self) -> str:
        """The stream that the handler is for."""

    @property
    def group(self) -> str:
        """The consumer group."""


class PythonDelivery:
    """The base of Message, in Python."""

    __slots__ = ("_fields", "_id", "entry", "failures", "flat", "origin", "recorded")

    origin: MessageSource
    #: The id of the entry that is acked.
    entry: bytes
    #: Names and values as Redis sends them: `name, value, name, value`.
    flat: Sequence[bytes]
    #: Attempts that failed before this one.
    failures: int
    #: A script must settle it: Redis keeps a record of retries or crashes, or its handler returned `Emit`.
    recorded: bool
    # Decoded when they are asked for.
    _id: str | None
    _fields: dict[str, str] | None

    @classmethod
    def from_reply(cls, origin: MessageSource, entries: Iterable[Sequence[Any]]) -> list[Self]:
        """Make a message of each `[id, [name, value, ...]]` of a reply."""
        messages, new = [], cls.__new__
        for entry, flat in entries:
            # Attributes are set here and not in a method: a call costs as much as all of them.
            message = new(cls)
            message.origin = origin
            message.entry = entry
            message.flat = flat
            message.failures = 0
            message.recorded = False
            message._id = message._fields = None
            messages.append(message)
        return messages

    @property
    def fields(self) -> dict[str, str]:
        """The entry's fields. Raises DecodeError when one is not UTF-8."""
        if self._fields is None:
            self._fields = self.read_fields()
        return self._fields

    def read_fields(self) -> dict[str, str]:
        """Decode the fields again and return them, for a caller that changes or keeps them. Raises DecodeError."""
        try:
            parts = map(_decode, self.flat)
            return dict(zip(parts, parts, strict=False))  # a strict zip takes a fifth longer
        except UnicodeDecodeError:
            raise self._not_utf8() from None

    def value_of(self, name: bytes) -> bytes | None:
        """Return the value of the first field with that name; None when there is none."""
        flat = self.flat
        for at in range(0, len(flat) - 1, 2):
            if flat[at] == name:
                return flat[at + 1]
        return None

    def _not_utf8(self) -> Exception:
        """Return the error for fields that are not UTF-8."""
        raise NotImplementedError


if TYPE_CHECKING:
    Delivery = PythonDelivery
else:
    Delivery = PythonDelivery if compiled.entries is None else compiled.entries.Delivery
