"""Stream ids as pairs that compare: `<Unix ms>-<sequence>`."""

from __future__ import annotations

import re

_ID = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")
_MOST = 2**64 - 1


def parse_id(entry_id: bytes | str) -> tuple[int, int]:
    """`b"1700000000000-3"` as `(1700000000000, 3)`. Raises ValueError for anything else."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    ms, _, seq = text.partition("-")
    return int(ms), int(seq or 0)


def whole_id(text: str) -> str:
    """An id that somebody typed, with `-0` where the sequence is missing. Raises ValueError for what can't be one."""
    parts = parse_id(text) if _ID.fullmatch(text) else (_MOST + 1, 0)
    if max(parts) > _MOST:
        raise ValueError(f"{text!r} must be an entry's id such as 1764000000000-0")
    return "{}-{}".format(*parts)
