"""Splits the addresses of streams, whose names may hold slashes.

A slash in the name of a stream or group is written `%2F`. Where it is not, the address is read from its end: the last
`/groups/` separates the stream from the group. `with_single_segments` finds the names and encodes their slashes, so
that each name is one segment of the path, and the routes match in linear time.
"""

from urllib.parse import unquote_to_bytes

from starlette.convertors import Convertor, StringConvertor
from starlette.types import Scope

PREFIX = "/v1/streams/"
_GROUPS = "groups"
_OF_DEAD = "dead"
_PENDING = "pending"
#: The last segment of a path, and the last but one of a path that ends with an id.
_ENDS = frozenset({"messages", "messages:batch", "tail", _OF_DEAD, "dead:replay", "dead:drop", _PENDING})
_BEFORE_ID = frozenset({"messages", "later", _OF_DEAD})
#: `/v1/streams/<name>/messages`
_SLASHES_OF_MOST = 4


class NameConvertor(Convertor[str]):
    """A name in one segment of a path, as `with_single_segments` encodes it."""

    regex = "[^/]*"

    def convert(self, value: str) -> str:
        """Return the name."""
        return value.replace("%2F", "/").replace("%25", "%")

    def to_string(self, value: str) -> str:
        """Return the segment."""
        return _segment(value)


class IdConvertor(StringConvertor):
    """An id, which a verb may follow: `/later/{later_id}:run` does not name a message with that id."""

    regex = "[^/:]+"


def is_utf8(scope: Scope) -> bool:
    """Return whether the path and the query are UTF-8; the server has replaced all bytes that are not."""
    encoded: bytes = scope.get("raw_path", b"") + b"?" + scope["query_string"]
    if b"%" not in encoded:
        return encoded.isascii()
    try:
        unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        return False
    return True


def with_single_segments(raw_path: bytes, root_path: str, path: str) -> str:
    """Return `path` with the names of stream and group in one segment each; `raw_path` is the path as it was sent."""
    if b"%" not in raw_path and raw_path.count(b"/") == _SLASHES_OF_MOST:
        return path
    base, prefix, rest = raw_path.decode("ascii", "replace").partition(PREFIX)
    if not prefix or base not in ("", root_path):
        return path
    segments = [unquote_to_bytes(segment).decode(errors="replace") for segment in rest.split("/")]
    begins = _end_begins(segments)
    names, end = segments[:begins], segments[begins:]
    parts = ["/".join(names)] if names else []
    if names and end[0].partition(":")[0] in (_OF_DEAD, _PENDING) and (at := _last_groups(names)):
        parts = ["/".join(names[:at]), _GROUPS, "/".join(names[at + 1 :])]
    return base + PREFIX + "/".join(map(_segment, [*parts, *end]))


def _end_begins(segments: list[str]) -> int:
    """Return where the names end; 0 where there are none."""
    if segments[-1] in _ENDS:
        return len(segments) - 1
    if segments[-1] == "explain" and segments[-3:-2] in (["messages"], ["later"]):
        return len(segments) - 3
    return len(segments) - 2 if segments[-2:-1] and segments[-2] in _BEFORE_ID else 0


def _last_groups(names: list[str]) -> int:
    """Return where the last `groups` between two names is; 0: nowhere."""
    return next((at for at in range(len(names) - 2, 0, -1) if names[at] == _GROUPS), 0)


def _segment(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")
