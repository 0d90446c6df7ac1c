"""Stream ids as pairs that compare: `<Unix ms>-<sequence>`."""

from __future__ import annotations


def parse_id(entry_id: bytes | str) -> tuple[int, int]:
    """`b"1700000000000-3"` as `(1700000000000, 3)`. Raises ValueError for anything else."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    ms, _, seq = text.partition("-")
    return int(ms), int(seq or 0)
