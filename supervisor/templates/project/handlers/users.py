"""Handles `events:user_created`."""

from pydantic import BaseModel
from supervisor import handler


class UserCreated(BaseModel):
    """A message of the stream `events:user_created`. A message that does not fit becomes a dead letter."""

    user_id: int
    email: str


@handler("events:user_created", group="welcome")
async def welcome(event: UserCreated) -> None:
    """Welcome the user. Returning means done; raising means that the message is tried again later."""
    print(f"welcome, {event.email}", flush=True)
