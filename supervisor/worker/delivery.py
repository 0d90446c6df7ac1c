"""One attempt at a message, as it goes through a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    def message(self, stream: str, group: str) -> Message:
        """What the handler gets."""
        return Message(self.id.decode(), stream, group, None, self.failed_before + 1, flat=self.flat)
