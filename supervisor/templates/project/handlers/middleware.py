"""Functions around the call of every handler: `middleware` in config.toml names them."""

import logging
import time

from supervisor import Message, Next

log = logging.getLogger(__name__)
SLOW_S = 1.0


async def timing(message: Message, call_next: Next) -> None:
    """Log the messages that take long; a line has the stream, the group and the id of its message."""
    began_s = time.perf_counter()
    try:
        await call_next(message)
    finally:
        if (took_s := time.perf_counter() - began_s) > SLOW_S:
            log.warning("slow message: %.1f s", took_s)
