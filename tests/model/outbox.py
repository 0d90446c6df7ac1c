"""The outbox of the model: a real SQLite in memory, with the model's time; the relays are the product's own."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import StaticPool, create_engine, event, func, insert, select
from sqlalchemy.exc import OperationalError

from supervisor.outbox.rows import row_text
from supervisor.outbox.tables import metadata, outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection

    from tests.model.stepped_loop import Clock

T = TypeVar("T")
_UNIX_EPOCH_JULIAN = 2440587.5
#: The share of transactions that fail, and of those that succeed without an answer.
_FAILS = 0.03


class Outbox:
    """The database of all pools."""

    def __init__(self, clock: Clock, chance: random.Random) -> None:
        self.chance = chance
        self._engine = create_engine("sqlite://", poolclass=StaticPool)

        @event.listens_for(self._engine, "connect")
        def set_time(connection: Any, _: Any) -> None:
            connection.create_function("julianday", 1, lambda _: clock.now_s / 86400 + _UNIX_EPOCH_JULIAN)

        metadata.create_all(self._engine)

    def add(self, number: int, stream: str, fields: Mapping[str, str]) -> None:
        """A transaction commits that has a message."""
        with self._engine.begin() as connection:
            row = {"key": f"row {number}", "stream": stream, "fields": row_text(fields)}
            connection.execute(insert(outbox).values(row))

    @property
    def rows(self) -> int:
        """How many messages wait."""
        with self._engine.begin() as connection:
            return connection.execute(select(func.count()).select_from(outbox)).scalar_one()

    async def run(self, work: Callable[[Connection], T]) -> T:
        """As `Database.run`."""
        await asyncio.sleep(self.chance.random() * 0.01)
        fails = self.chance.random()
        if fails < _FAILS:
            raise OperationalError("", {}, OSError("away"))
        with self._engine.begin() as connection:
            found = work(connection)
        await asyncio.sleep(self.chance.random() * 0.01)
        if fails < 2 * _FAILS:
            raise OperationalError("", {}, OSError("no answer"))
        return found

    async def close(self) -> None:
        """As `Database.close`: others use it."""
