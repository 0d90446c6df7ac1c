"""The tables that a project's database gets: outbox, inbox and the relay's lease.

The order of the outbox is the order of commit. SQLite has one writer at a time, so there it is the order of `id`. In
PostgreSQL, transactions get their ids long before they commit. There a trigger numbers the rows when the transaction
commits, behind a lock that is held until it has committed: `position`.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Connection,
    DateTime,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
    func,
)
from sqlalchemy.dialects import postgresql, sqlite

from supervisor.errors import UsageError

#: Any number: what locks it in the same database shares the lock of the commits.
COMMIT_LOCK = 0x7375_7065_7276_6973
#: What PostgreSQL needs beside the table, one statement each: for migrations that do not use `metadata.create_all`.
POSTGRESQL_DDL = (
    "CREATE SEQUENCE supervisor_outbox_position",
    f"""CREATE FUNCTION supervisor_outbox_number() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock({COMMIT_LOCK});
  UPDATE supervisor_outbox SET position = nextval('supervisor_outbox_position') WHERE id = NEW.id;
  RETURN NULL;
END $$""",
    """CREATE CONSTRAINT TRIGGER supervisor_outbox_number AFTER INSERT ON supervisor_outbox
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION supervisor_outbox_number()""",
)
_INSERTS = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
_DROPS = ("DROP FUNCTION supervisor_outbox_number", "DROP SEQUENCE supervisor_outbox_position")

metadata = MetaData()

outbox = Table(
    "supervisor_outbox",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("position", BigInteger),
    #: What the relay publishes the row under: once.
    Column("key", String(32), nullable=False),
    Column("stream", Text, nullable=False),
    #: JSON, see `row_text`.
    Column("fields", Text, nullable=False),
    Column("added_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("supervisor_outbox_order", "position", "id"),
    sqlite_autoincrement=True,
)

inbox = Table(
    "supervisor_inbox",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("consumer_group", Text, primary_key=True),
    #: The message's id, or the key that the handler gave.
    Column("message", Text, primary_key=True),
    Column("handled_at", DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
)

lease = Table(
    "supervisor_relay",
    metadata,
    Column("name", String(32), primary_key=True),
    #: The token of the pool whose relay publishes.
    Column("owner", Text, nullable=False),
    #: By the database's clock, Unix ms.
    Column("until_ms", BigInteger, nullable=False),
)


def insert_new(connection: Connection, table: Table, row: Mapping[str, object]) -> bool:
    """Insert the row; False if there is one with this primary key. Raises UsageError for another kind of database."""
    make: Any = _INSERTS.get(connection.dialect.name)
    if make is None:
        raise UsageError(f"a database of {' or '.join(_INSERTS)} is needed, not {connection.dialect.name}")
    statement = make(table).values(row).on_conflict_do_nothing()
    done = connection.execute(statement, execution_options={"preserve_rowcount": True})
    return bool(done.rowcount)


for _when, _statements in (("after_create", POSTGRESQL_DDL), ("after_drop", _DROPS)):
    for _statement in _statements:
        _ddl: Any = DDL(_statement)  # type: ignore[no-untyped-call]
        event.listen(outbox, _when, _ddl.execute_if(dialect="postgresql"))
