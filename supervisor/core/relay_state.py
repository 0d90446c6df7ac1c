"""What the relay of the outbox does, as it notes it in shared memory."""

from enum import IntEnum


class RelayState(IntEnum):
    """What the relay does."""

    STARTING = 0
    RELAYING = 1
    #: The relay of another pool publishes.
    STANDBY = 2
    #: The database, or Redis, can't be used.
    NO_DATABASE = 3
    NO_REDIS = 4
