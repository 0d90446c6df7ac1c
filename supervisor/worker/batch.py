"""What the exception of a batch handler says about each of its messages. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.errors import UsageError
from supervisor.messages import BatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from supervisor.worker.delivery import Delivery


def verdicts(unit: Sequence[Delivery], error: BaseException) -> Iterator[tuple[Delivery, BaseException | None]]:
    """(delivery, why it failed; None: it is done). Only a BatchError that names messages of this batch spares any."""
    failed = None
    if isinstance(error, BatchError):
        failed = error.failed
        strangers = failed.keys() - {delivery.origin.decode() for delivery in unit}
        if strangers:  # it meant some message, and nobody knows which: none is taken for done
            failed, error = (
                None,
                UsageError(f"BatchError: no message of this batch has the id {next(iter(strangers))!r}"),
            )
    for delivery in unit:
        yield delivery, error if failed is None else failed.get(delivery.origin.decode())
