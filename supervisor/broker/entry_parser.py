"""redis-py's parser with the compiled reader before hiredis's, where it was built."""

from typing import Any

import hiredis
from redis.asyncio.connection import DefaultParser

from supervisor import compiled


class EntryParser(DefaultParser):  # type: ignore[misc, valid-type]  # redis-py chooses its base at run time
    """Returns what redis-py's own parser does, with the entries of XREADGROUP not yet taken apart."""

    def on_connect(self, connection: Any) -> None:
        """Take a connection; as in redis-py, a new reader begins with it."""
        super().on_connect(connection)
        # Any other reader, of a redis-py to come, is left as it is.
        reader: Any = getattr(self, "_reader", None)
        if compiled.entries is not None and isinstance(reader, hiredis.Reader):
            self._reader = compiled.entries.Reader(reader)
