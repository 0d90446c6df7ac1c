"""Dead letters: the format of their entries, and filters. Pure.

The entry holds the message's fields behind a prefix, beside what is said about the message.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supervisor.core.ids import parse_number
from supervisor.text import decoded

#: Keeps the message's own fields apart from the letter's.
FIELD_PREFIX = b"field:"


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    #: Its own id, in the stream of dead letters.
    letter_id: str
    stream: str
    group: str
    #: The id of the message that was given up.
    id: str
    reason: str
    deliveries: int
    handler: str
    worker: str
    dead_at_ms: int
    error: str
    traceback: str
    #: How the worker ended, where that is the reason: the signal's name, the exit code, the stack if there is one.
    signal: str
    exit_code: int | None
    stack: str
    #: The key that stops until the letter is replayed or dropped, where the handler has on_dead = "halt".
    halts: str
    fields: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the letter for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Filter:
    """Chooses letters; empty: all of them."""

    #: Parts of the text, in any case.
    reason: str = ""
    handler: str = ""
    #: Somewhere in the message's fields, its id or the error.
    text: str = ""
    #: The least time since the message was given up.
    older_than_ms: int = 0

    @property
    def empty(self) -> bool:
        """Whether every letter matches."""
        return not (self.reason or self.handler or self.text or self.older_than_ms)

    def fits(self, letter: Letter, now_ms: int) -> bool:
        """Return whether the letter matches."""
        if self.older_than_ms and now_ms - letter.dead_at_ms < self.older_than_ms:
            return False
        pairs = [(self.reason, letter.reason), (self.handler, letter.handler)]
        return all(part.lower() in text.lower() for part, text in pairs) and self.text_fits(letter)

    def text_fits(self, letter: Letter) -> bool:
        """Return whether `text` is somewhere in the letter."""
        if not self.text:
            return True
        parts = [letter.id, letter.error, *letter.fields, *letter.fields.values()]
        return self.text.lower() in "\n".join(parts).lower()


def parse_letter(letter_id: bytes, stream: str, group: str, entry: Mapping[bytes, bytes]) -> Letter:
    """Return the letter of an entry. Anybody can write one: what is missing or malformed reads as empty."""

    def text(name: bytes) -> str:
        return decoded(entry.get(name, b""))

    cut = len(FIELD_PREFIX)
    return Letter(
        letter_id=letter_id.decode(),
        stream=stream,
        group=group,
        id=text(b"id"),
        reason=text(b"reason"),
        deliveries=parse_number(text(b"deliveries")) or 0,
        handler=text(b"handler"),
        worker=text(b"worker"),
        dead_at_ms=parse_number(text(b"dead_at_ms")) or 0,
        error=text(b"error"),
        traceback=text(b"traceback"),
        signal=text(b"signal"),
        exit_code=parse_number(text(b"exit_code")),
        stack=text(b"stack"),
        halts=text(b"halts"),
        fields={decoded(name[cut:]): decoded(value) for name, value in entry.items() if name.startswith(FIELD_PREFIX)},
    )
