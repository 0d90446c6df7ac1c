"""SQLAlchemy: effects in a database exactly once, and messages that are published if the transaction commits.

    if not await once(session, message):        # in a handler, within its own transaction
        return
    add(session, "orders:paid", OrderPaid(...))     # published by the relay when this transaction has committed

`[outbox] url` in config.toml names the database for the relay. `session` may be a Session or an AsyncSession, of SQLite
or PostgreSQL.
"""

import uuid
from collections.abc import Awaitable
from typing import Any, overload

from supervisor.core.emit import fields_for
from supervisor.errors import HandlerError
from supervisor.messages import Message
from supervisor.publisher import traced

try:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, registry, scoped_session
except ImportError:
    raise HandlerError(
        "supervisor.contrib.sqlalchemy needs SQLAlchemy: pip install 'redis-streams-supervisor[sqlalchemy]'"
    ) from None

from supervisor.outbox.rows import row_text
from supervisor.outbox.tables import inbox, insert_new, metadata, outbox

__all__ = ["add", "create_tables", "metadata", "once"]

AnySession = Session | scoped_session[Any]
AnyAsyncSession = AsyncSession | async_scoped_session[Any]


class OutboxRow:
    """A row of the outbox, as the session's unit of work writes it."""

    def __init__(self, stream: str, fields: str) -> None:
        self.key = uuid.uuid4().hex
        self.stream = stream
        self.fields = fields


registry(metadata=metadata).map_imperatively(OutboxRow, outbox)


def create_tables(bind: Engine | Connection) -> None:
    """Create the tables that do not exist. With an async engine: `await connection.run_sync(create_tables)`."""
    metadata.create_all(bind)


def add(session: AnySession | AnyAsyncSession, stream: str, event: Any) -> None:
    """Have `event` (a mapping, a pydantic model or a dataclass) published to `stream` if the transaction commits.

    It becomes a row of the outbox with the next flush. Raises EncodeError, which names the field, for an event that
    can't be published, and UsageError for a stream without a name.
    """
    fields = fields_for(stream, event, "add")
    session.add(OutboxRow(stream, row_text(traced(stream, fields))))


@overload
def once(session: AnySession, message: Message, *, key: str | None = None) -> bool: ...
@overload
def once(session: AnyAsyncSession, message: Message, *, key: str | None = None) -> Awaitable[bool]: ...


def once(session: Any, message: Message, *, key: str | None = None) -> bool | Awaitable[bool]:
    """Note in the session's transaction that this group handles `message`; False if it has handled it before.

    Another transaction that handles the same message at this moment is waited for. With an AsyncSession it is awaited.
    `key` stands for the message instead of its id, for example the id of an order that may be published twice.
    """
    row: dict[str, object] = {
        "stream": message.stream,
        "consumer_group": message.group,
        "message": message.id if key is None else key,
    }
    if isinstance(session, AsyncSession | async_scoped_session):
        return _once_async(session, row)
    return _once(session.connection(), row)


async def _once_async(session: AnyAsyncSession, row: dict[str, object]) -> bool:
    connection = await session.connection()
    return await connection.run_sync(_once, row)


def _once(connection: Connection, row: dict[str, object]) -> bool:
    return insert_new(connection, inbox, row)
