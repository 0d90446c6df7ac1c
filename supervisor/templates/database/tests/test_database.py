"""A user and its event are stored together."""

from sqlalchemy import select
from supervisor.contrib.sqlalchemy import metadata

from handlers.database import User, sessions
from handlers.http import NewUser, create_user

outbox = metadata.tables["supervisor_outbox"]


async def test_a_user_is_stored_with_its_event() -> None:
    event = await create_user(NewUser(email="ada@example.com"))
    async with sessions() as session:
        user = await session.get_one(User, event.user_id)
        assert user.email == "ada@example.com"
        assert await session.scalar(select(outbox.c.stream)) == "events:user_created"
