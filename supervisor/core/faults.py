"""What an error from Redis means for who reads the stream. Pure.

A Redis fault never ends a worker: it waits with backoff, mends what it can and goes on.
"""

from __future__ import annotations

from enum import Enum

from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError


class Fault(Enum):
    """The kinds of fault that are treated differently."""

    #: The connection is gone, or the server refuses for now: reconnect with backoff.
    WAIT = "wait"
    #: The group or its stream is gone: make it again.
    NO_GROUP = "no_group"
    #: Somebody ended our blocked read: we did, to stop.
    UNBLOCKED = "unblocked"
    #: The credentials or the key's type don't fit: an operator must act; wait meanwhile.
    OPERATOR = "operator"


#: redis-py cuts off the codes it has a class for; these are the ones it leaves in the text.
_FIRST_WORDS = {
    "NOGROUP": Fault.NO_GROUP,
    "UNBLOCKED": Fault.UNBLOCKED,
    "WRONGTYPE": Fault.OPERATOR,
    "NOPERM": Fault.OPERATOR,
    "WRONGPASS": Fault.OPERATOR,
}


def fault_of(error: BaseException) -> Fault:
    """The kind of `error`, which came from redis-py or the socket."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return Fault.OPERATOR
    if isinstance(error, ResponseError):
        text = str(error)
        word = text.partition(" ")[0]
        if word == "UNBLOCKED" and "no longer exists" in text:  # Redis 7.0's word for NOGROUP in a blocked read
            return Fault.NO_GROUP
        return _FIRST_WORDS.get(word, Fault.WAIT)
    return Fault.WAIT
