"""Stream ids `<Unix ms>-<sequence>` as pairs of numbers, which compare in stream order; and plain numbers. Pure."""

import re
from datetime import UTC, datetime
from functools import lru_cache

_ID = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")
_PART_MAX = 2**64 - 1
#: A time in milliseconds has 13 digits.
_DIGITS_MAX = 15


def parse_id(entry_id: bytes | str) -> tuple[int, int]:
    """Return `(1700000000000, 3)` for `b"1700000000000-3"`. Raises ValueError for anything else."""
    ms, _, seq = entry_id.partition(b"-") if isinstance(entry_id, bytes) else entry_id.partition("-")
    return int(ms), int(seq or 0)


def normalize_id(text: str) -> str:
    """Return a typed id, with `-0` where the sequence is missing. Raises ValueError for text that is not an id."""
    parts = parse_id(text) if _ID.fullmatch(text) else (_PART_MAX + 1, 0)
    if max(parts) > _PART_MAX:
        raise ValueError(f"{text!r} must be an entry's id such as 1764000000000-0")
    return "{}-{}".format(*parts)


def time_of_id(entry_id: str) -> str | None:
    """Return the time in an id, as RFC 3339 has it; None for one beyond the year 9999."""
    try:
        seconds, ms = divmod(parse_id(entry_id)[0], 1000)
    except ValueError:
        return None
    second = _second(seconds)
    return None if second is None else f"{second}.{ms:03}Z"


@lru_cache(maxsize=64)  # ids that are made one after another share their second
def _second(seconds: int) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").removesuffix("+00:00")
    except (ValueError, OverflowError, OSError):
        return None


def parse_number(text: bytes | str | None) -> int | None:
    """Return the number in a stored value; None for anything but ASCII digits."""
    if not text or len(text) > _DIGITS_MAX:
        return None
    return int(text) if text.isascii() and text.isdigit() else None
