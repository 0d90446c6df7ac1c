"""JSON input as messages: one object, an array of objects, or one after the other (NDJSON), read piece by piece.

What is wrong is a UsageError with its line. Never more than one piece and the message it ends in is
in memory.
"""

from __future__ import annotations

import json
import re
from typing import IO, TYPE_CHECKING, Any

from supervisor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PIECE_BYTES = 64 * 1024
#: A literal or an escape that the end of the piece cut in two begins at most this far before it.
_CUT = 8
_BLANK = re.compile(r"[ \t\r\n]*")


def fields_of(message: Mapping[str, Any]) -> list[bytes]:
    """Names and values as Redis stores them: strings as they are, all else as JSON text.

    Raises ValueError for a message without fields and for text that is not Unicode.
    """
    if not message:
        raise ValueError("a message needs at least one field")
    flat: list[bytes] = []
    for name, value in message.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        try:
            flat += (name.encode(), text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(f"the field {name!r} is not Unicode: {error.reason}") from None
    return flat


def json_chunks(source: IO[bytes], size: int) -> Iterator[list[list[bytes]]]:
    """The messages in `source` as `fields_of` makes them, up to `size` at once.

    A chunk is shorter where the source has no more at the moment, so that a slow pipe is not held up.
    Raises UsageError that names the line; the chunk it stands in is not yielded.
    """
    reader = _Reader(source)
    chunk: list[list[bytes]] = []
    for line, value in reader.values():
        if not isinstance(value, dict):
            raise UsageError(f"{reader.name}:{line}: a message must be a JSON object, not {json.dumps(value)[:40]}")
        try:
            chunk.append(fields_of(value))
        except ValueError as error:
            raise UsageError(f"{reader.name}:{line}: {error}") from None
        if len(chunk) >= size or reader.is_drained():
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _Reader:
    def __init__(self, source: IO[bytes]) -> None:
        import codecs

        self.name = getattr(source, "name", "<stdin>")
        self._source = source
        self._to_text = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder(parse_constant=_refuse_constant)
        self._text = ""
        self._at = 0
        self._line = 1
        self._ended = False

    def is_drained(self) -> bool:
        """Nothing but blanks is left of what was read so far."""
        return len(self._text) - self._at <= len("\r\n") and not self._text[self._at :].strip()

    def values(self) -> Iterator[tuple[int, Any]]:
        """Each value with the line it begins in."""
        first = self._peek()
        if first == "[":
            self._at += 1
            yield from self._items()
            first = self._peek()
            if first:
                raise UsageError(f"{self.name}:{self._line}: nothing may follow the array")
        while first:
            yield self._line, self._value()
            first = self._peek()

    def _items(self) -> Iterator[tuple[int, Any]]:
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            self._peek()
            yield self._line, self._value()
            after = self._peek()
            if after not in (",", "]"):
                what = f"not {after!r}" if after else "but the input ends"
                raise UsageError(f"{self.name}:{self._line}: not valid JSON: expected ',' or ']', {what}")
            self._at += 1
            if after == "]":
                return

    def _value(self) -> Any:
        wanted = PIECE_BYTES
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT
                if self._ended or not cut:
                    # The line that lacks something, not the one after it where that was noticed.
                    line = self._line + self._text[self._at : error.pos].rstrip().count("\n")
                    raise UsageError(f"{self.name}:{line}: not valid JSON: {error.msg}") from None
                self._more(wanted)
                wanted *= 2  # so that a long message is not tried once for each piece
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{self.name}:{self._line}: not valid JSON: {error}") from None
            else:
                self._move(end)
                return value

    def _peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            found = _BLANK.match(self._text, self._at)
            self._move(found.end() if found else self._at)
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more(PIECE_BYTES)

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self, count: int) -> None:
        # What there is at the moment, where the source can tell (a pipe, a terminal).
        piece = getattr(self._source, "read1", self._source.read)(count)
        self._ended = not piece
        try:
            self._text = self._text[self._at :] + self._to_text.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.name}:{self._line}: not UTF-8: {error.reason}") from None
        self._at = 0


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
