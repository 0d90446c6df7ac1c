"""Handles `events:user_created`."""

from pydantic import BaseModel
from supervisor import Message, handler
from supervisor.contrib.sqlalchemy import once

from handlers.database import sessions


class UserCreated(BaseModel):
    """A message of the stream. One that does not fit becomes a dead letter."""

    user_id: int
    email: str


@handler("events:user_created", group="welcome")
async def welcome(event: UserCreated, message: Message) -> None:
    """Welcome the user. Returning means done; raising means that it is tried again later."""
    async with sessions.begin() as session:
        if not await once(session, message):
            return  # what this transaction writes is in the database already
        print(f"welcome, {event.email}", flush=True)
