"""The context of handlers closes what it has made."""

import asyncio
from pathlib import Path

import pytest

from supervisor.context import Context


class Connection:
    """What a context makes; with `error`, it fails to close."""

    def __init__(self, error: Exception | None = None) -> None:
        self.closed = False
        self._error = error

    async def aclose(self) -> None:
        self.closed = True
        if self._error is not None:
            raise self._error


async def test_all_is_closed_also_when_one_fails() -> None:
    made = Context({}, Path(), "host:0", "redis://127.0.0.1:1")
    loop = asyncio.get_running_loop()
    connections = [Connection(), Connection(OSError("reset")), Connection()]
    for number, one in enumerate(connections):
        made._once((f"connection {number}", loop), lambda one=one: one)
    with pytest.raises(OSError, match="reset"):
        await made.aclose()
    assert all(one.closed for one in connections)
