"""Reads messages from JSON: one object, an array of objects, or one object after the other (NDJSON).

The input is read piece by piece; only a piece and the message that it ends in are in memory. Every error is a
UsageError with its line.
"""

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from supervisor.core.encode import encode_fields
from supervisor.core.json_text import DECODER
from supervisor.errors import EncodeError, UsageError

PIECE_BYTES = 64 * 1024
#: A literal or escape that is cut by the end of a piece begins at most this far before the end.
_CUT = 8
_BLANK = re.compile(r"[ \t\r\n]*")


def json_chunks(source: IO[bytes], size: int) -> Iterator[list[dict[str, str]]]:
    """Yield the messages in `source` as an entry's fields, up to `size` at once.

    A chunk is shorter where the source has no more at the moment, so that a slow pipe is not held up.
    Raises UsageError that names the line; the chunk it stands in is not yielded.
    """
    reader = _JsonReader(source)
    chunk: list[dict[str, str]] = []
    for line, value in reader.values():
        if not isinstance(value, dict):
            raise UsageError(f"{reader.name}:{line}: a message must be a JSON object, not {json.dumps(value)[:40]}")
        try:
            chunk.append(encode_fields(value))
        except EncodeError as error:
            raise UsageError(f"{reader.name}:{line}: {error}") from None
        if len(chunk) >= size or reader.is_drained():
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _JsonReader:
    def __init__(self, source: IO[bytes]) -> None:
        import codecs

        self.name = getattr(source, "name", "<stdin>")
        self._source = source
        self._to_text = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._line = 1
        self._ended = False

    def is_drained(self) -> bool:
        """Return whether only blanks are left of what was read so far."""
        return len(self._text) - self._at <= len("\r\n") and not self._text[self._at :].strip()

    def values(self) -> Iterator[tuple[int, Any]]:
        """Yield each value with the line it begins in."""
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
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT
                if self._ended or not cut:
                    # The line where something is missing, not the next one, where that was noticed.
                    line = self._line + self._text[self._at : error.pos].rstrip().count("\n")
                    raise UsageError(f"{self.name}:{line}: not valid JSON: {error.msg}") from None
                self._more(wanted)
                wanted *= 2  # a long message is not parsed again for each piece
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{self.name}:{self._line}: not valid JSON: {error}") from None
            else:
                self._move(end)
                return value

    def _peek(self) -> str:
        """Return the next character that is not blank; empty at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._move(blank.end() if blank else self._at)
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more(PIECE_BYTES)

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self, count: int) -> None:
        # `read1` returns what there is at the moment, for pipes and terminals.
        piece = getattr(self._source, "read1", self._source.read)(count)
        self._ended = not piece
        try:
            self._text = self._text[self._at :] + self._to_text.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.name}:{self._line}: not UTF-8: {error.reason}") from None
        self._at = 0
