"""The format of a dead letter's entry: the message's fields behind a prefix, beside what is said about it. Pure."""

from __future__ import annotations

#: Keeps the message's own fields apart from the letter's.
FIELD_PREFIX = b"field:"
