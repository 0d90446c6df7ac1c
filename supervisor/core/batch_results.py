"""What the exception of a batch handler says about each of its messages. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.errors import UsageError
from supervisor.messages import BatchError, DecodeError
from supervisor.text import related_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from supervisor.messages import Message


def batch_results(batch: Sequence[Message], error: BaseException) -> Iterator[tuple[Message, BaseException | None]]:
    """Yield each message with its error, or with None if it is done; only a BatchError can say that some are done."""
    failed = None
    if isinstance(error, BatchError):
        failed = error.failed
        unknown = failed.keys() - {message.id for message in batch}
        if unknown:  # which message it means is not known, so none counts as done
            failed = None
            error = UsageError(f"BatchError: no message of this batch has the id {next(iter(unknown))!r}")
    for message in batch:
        yield message, error if failed is None else failed.get(message.id)


def unreadable(batch: Sequence[Message], error: BaseException) -> list[tuple[Message, DecodeError]]:
    """Return the messages of which no text can be read, if that is what the handler has failed at.

    The error rose in the handler when it looked at one of them; the others are not to blame.
    """
    if not any(one.message in batch for one in related_errors(error) if isinstance(one, DecodeError)):
        return []
    errors = []
    for message in batch:
        try:
            message.read_fields()
        except DecodeError as own:
            errors.append((message, own))
    return errors
