"""Checks before the start that the outbox's database could be used; it does not connect."""

from importlib.util import find_spec

from supervisor.errors import ConfigError
from supervisor.settings.model import Settings


def check_outbox(settings: Settings) -> None:
    """Check `[outbox] url`. Raises ConfigError without SQLAlchemy or the driver, and for another kind of database."""
    if not settings.outbox.url:
        return
    if find_spec("sqlalchemy") is None:
        raise ConfigError("outbox.url needs SQLAlchemy: pip install 'redis-streams-supervisor[sqlalchemy]'")
    from supervisor.outbox.database import Database  # needs SQLAlchemy

    Database(settings.outbox.url)
