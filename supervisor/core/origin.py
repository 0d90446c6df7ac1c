"""What published an entry, if not a producer: a message for later, a schedule, `Emit` or the outbox. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from supervisor.core.ids import parse_number
from supervisor.text import decoded

#: Messages of a batch that are noted for what its handler has returned.
BATCH_MAX = 100
#: Streams to which a group's handler publishes that are noted: the last ones.
EMITS_STREAMS_MAX = 100
#: How long the notes of a stream are kept after the last one.
ORIGINS_S = 7 * 24 * 3600


class OriginKind(StrEnum):
    """What publishes entries."""

    LATER = "later"
    SCHEDULE = "schedule"
    EMIT = "emit"
    OUTBOX = "outbox"


@dataclass(frozen=True, slots=True)
class Origin:
    """What published an entry. What does not belong to its kind is None or empty."""

    kind: OriginKind
    #: The id of the message for later.
    later: str | None = None
    #: The name of the schedule, and its tick; None: it was run by hand.
    schedule: str | None = None
    tick_ms: int | None = None
    #: The key of the outbox row.
    row: str | None = None
    #: Which messages a handler had in hand when it returned the `Emit`; of a batch the first ones.
    stream: str | None = None
    group: str | None = None
    ids: tuple[str, ...] = ()

    @classmethod
    def parse(cls, fields: Mapping[bytes, bytes]) -> "Origin | None":
        """Read what `include/origin.lua` has noted; None for what another version has noted."""
        texts = {decoded(name): decoded(value) for name, value in fields.items()}
        try:
            kind = OriginKind(texts.get("kind", ""))
        except ValueError:
            return None
        return cls(
            kind=kind,
            later=texts.get("later"),
            schedule=texts.get("schedule"),
            tick_ms=parse_number(texts.get("tick_ms")),
            row=texts.get("row"),
            stream=texts.get("stream"),
            group=texts.get("group"),
            ids=tuple(texts.get("ids", "").split()),
        )


def ids_text(ids: Sequence[str]) -> str:
    """Return the ids of the messages in hand as they are noted."""
    return " ".join(ids[:BATCH_MAX])
