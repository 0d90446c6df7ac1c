"""The relay's view of the outbox: one transaction for each cycle, over any driver of SQLAlchemy."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, create_engine, delete, func, literal_column, make_url, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from supervisor.core.later import moment
from supervisor.errors import ConfigError
from supervisor.outbox.tables import insert_new, lease, outbox
from supervisor.text import install_hint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement

T = TypeVar("T")
#: What a cycle raises while the database is away, or the tables are missing.
DATABASE_FAULTS = (SQLAlchemyError, OSError)
#: A relay that is silent for this long is taken for dead by the relays of other pools.
LEASE_S = 15.0
ROWS_MAX = 500
#: How long a lock of another session is waited for, as SQLite's drivers do.
LOCK_TIMEOUT_S = 5.0
_LEASE = "outbox"
#: The clock of the database, Unix ms.
_NOW_MS = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS integer)",
}
#: When the oldest row was added, in seconds. SQLite keeps whatever a program writes. It reads more forms of a time than
#: SQLAlchemy, and gives NULL for others.
_OLDEST_S = {
    "postgresql": "extract(epoch FROM min(added_at))",
    "sqlite": "(julianday(min(added_at)) - 2440587.5) * 86400",
}
#: How long connecting may take, as the drivers call it.
_CONNECT = {"psycopg": {"connect_timeout": 5}, "psycopg2": {"connect_timeout": 5}, "asyncpg": {"timeout": 5}}


@dataclass(frozen=True, slots=True)
class Row:
    """A message that waits in the outbox."""

    id: int
    key: str
    stream: str
    #: As `row_text` writes them.
    fields: str


@dataclass(frozen=True, slots=True)
class OutboxBacklog:
    """What waits in the outbox."""

    rows: int
    oldest: datetime | None


class Database:
    """The outbox in the database of a URL."""

    def __init__(self, url: str) -> None:
        """Connect later. Raises ConfigError for a database that the outbox can't be in."""
        try:
            parsed = make_url(url)
            if (backend := parsed.get_backend_name()) not in _NOW_MS:
                raise ConfigError(f"outbox.url: a database of {' or '.join(_NOW_MS)} is needed, not {backend}")
            dialect = parsed.get_dialect()
            made: Any = create_async_engine if dialect.is_async else create_engine
            options = {"pool_size": 1, "max_overflow": 0, "connect_args": _CONNECT.get(parsed.get_driver_name(), {})}
            self._engine = made(parsed, **options)
        except SQLAlchemyError as error:
            raise ConfigError(f"outbox.url: {error}") from error
        except ImportError as error:
            raise ConfigError(f"outbox.url: {error}{install_hint(error)}") from error
        self._is_async = dialect.is_async

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` returns, in one transaction. Raises DATABASE_FAULTS."""
        if not self._is_async:
            return await asyncio.to_thread(self._run, work)
        async with self._engine.begin() as connection:
            result: T = await connection.run_sync(_bounded, work)
            return result

    def _run(self, work: Callable[[Connection], T]) -> T:
        with self._engine.begin() as connection:
            return _bounded(connection, work)

    async def close(self) -> None:
        """Disconnect."""
        if self._is_async:
            await self._engine.dispose()
        else:
            await asyncio.to_thread(self._engine.dispose)


def _bounded(connection: Connection, work: Callable[[Connection], T]) -> T:
    """Return what `work` returns; waiting too long for a locked table is an error, as in SQLite."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}")
    return work(connection)


def take_lease(connection: Connection, owner: str) -> bool:
    """Take or renew the right to publish; False while another relay has it."""
    now: ColumnElement[int] = literal_column(_NOW_MS[connection.dialect.name])
    until = now + int(LEASE_S * 1000)
    row = {"name": _LEASE, "owner": owner, "until_ms": until}
    ours = or_(lease.c.owner == owner, lease.c.until_ms < now)
    if connection.execute(update(lease).where(lease.c.name == _LEASE, ours).values(row)).rowcount:
        return True
    return insert_new(connection, lease, row)


def drop_lease(connection: Connection, owner: str) -> None:
    """Let another relay go on at once."""
    connection.execute(update(lease).where(lease.c.name == _LEASE, lease.c.owner == owner).values(until_ms=0))


def delete_rows(connection: Connection, ids: Sequence[int]) -> None:
    """Delete rows that are published."""
    if ids:
        connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))


def next_rows(connection: Connection, streams_off: Collection[str], ids_off: Collection[int]) -> list[Row]:
    """Return the first rows in the order of commit, without those of some streams and without some rows."""
    columns = (outbox.c.id, outbox.c.key, outbox.c.stream, outbox.c.fields)
    wanted = select(*columns).order_by(outbox.c.position.asc().nulls_first(), outbox.c.id).limit(ROWS_MAX)
    if streams_off:
        wanted = wanted.where(outbox.c.stream.not_in(streams_off))
    if ids_off:
        wanted = wanted.where(outbox.c.id.not_in(ids_off))
    return [Row(*found) for found in connection.execute(wanted)]


def count_waiting(connection: Connection) -> OutboxBacklog:
    """Count all rows, and say when the oldest was added."""
    oldest: ColumnElement[float | None] = literal_column(_OLDEST_S[connection.dialect.name])
    rows, oldest_s = connection.execute(select(func.count(), oldest).select_from(outbox)).one()
    if oldest_s is None or oldest_s < 0:
        return OutboxBacklog(rows, None)
    return OutboxBacklog(rows, moment(float(oldest_s) * 1000))
