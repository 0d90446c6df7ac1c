"""One attempt at a message, as it goes through a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from supervisor.core.copies import original
from supervisor.messages import Message

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True, eq=False)
class Delivery:
    """An entry in hand."""

    id: bytes
    #: Redis's flat names and values.
    flat: Sequence[bytes]
    #: How many attempts have failed before this one.
    failed_before: int = 0
    #: Redis keeps attempts or crashes of it, which its ack must clear.
    recorded: bool = False
    #: It was read from the group's replay stream.
    copied: ClassVar[bool] = False

    @property
    def origin(self) -> bytes:
        """The id by which handler, log and dead letter know the message."""
        return self.id

    def message(self, stream: str, group: str) -> Message:
        """What the handler gets."""
        return Message(self.id.decode(), stream, group, None, self.failed_before + 1, flat=self.flat)


class Copy(Delivery):
    """A copy of a message whose entry is trimmed: settled under its own id, known by the message's."""

    __slots__ = ("_origin",)
    copied = True

    def __init__(self, entry_id: bytes, flat: Sequence[bytes]) -> None:
        """`flat`: the copy's fields."""
        origin, fields = original(entry_id, flat)
        # Recorded: each is settled by a script, which removes the copy too.
        super().__init__(entry_id, fields, recorded=True)
        self._origin = origin

    @property
    def origin(self) -> bytes:
        """The id of the message."""
        return self._origin

    def message(self, stream: str, group: str) -> Message:
        """What the handler gets."""
        return Message(self._origin.decode(), stream, group, None, self.failed_before + 1, flat=self.flat)
