"""Names a keeper's duty in the log when Redis holds it up."""

import contextlib
from collections.abc import Iterator

from redis.exceptions import ResponseError

from supervisor.broker.redis_errors import FULL, REDIS_FAULTS, code_of, is_transient
from supervisor.log import FaultLog

_FAULT = "can't do housekeeping"


@contextlib.contextmanager
def duty(faults: FaultLog, name: str, stream: str | None = None, group: str | None = None) -> Iterator[None]:
    """Log a fault of what is done inside as one of this duty; raise it again only if it would hold up others too.

    Do not nest it: each would log the fault.
    """
    try:
        yield
    except REDIS_FAULTS as error:
        if not isinstance(error, ResponseError) or is_transient(error) or code_of(error) == FULL:
            faults.redis(_FAULT, error, duty=name, stream=stream, group=group)
            raise
        faults.resolved(_FAULT, duty=name, stream=stream, group=group)  # Redis answers again
        faults(_FAULT, error, key=f"{name} {stream} {group}", duty=name, stream=stream, group=group)
    else:
        faults.resolved(_FAULT, duty=name, stream=stream, group=group)
