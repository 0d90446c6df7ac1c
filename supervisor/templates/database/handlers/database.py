"""The project's database: SQLite in a file, until DATABASE_URL names another one (and [outbox] url the same)."""

import os
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from supervisor.contrib.sqlalchemy import create_tables

URL = os.environ.get("DATABASE_URL") or f"sqlite+aiosqlite:///{Path(__file__).parents[1] / 'app.db'}"
sessions = async_sessionmaker(create_async_engine(URL), expire_on_commit=False)


class Base(DeclarativeBase):
    """The project's tables."""


class User(Base):
    """A registered user."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


def _make_tables() -> None:
    """Make the tables that are missing. A database of a server gets them by migrations."""
    engine = create_engine(URL.replace("+aiosqlite", ""))
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        create_tables(connection)
    engine.dispose()


if URL.startswith("sqlite"):
    _make_tables()
