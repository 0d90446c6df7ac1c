"""Handles `events:user_created`."""

from pydantic import BaseModel
from supervisor import handler


class UserCreated(BaseModel):
    """A message of the stream. One that does not fit becomes a dead letter."""

    user_id: int
    email: str


@handler("events:user_created", group="welcome")
async def welcome(event: UserCreated) -> None:
    """Welcome the user. Returning means done; raising means that it is tried again later."""
    # With the pool of handlers/resources.py, and `from supervisor import context`:
    #     async with context().state["database"].acquire() as connection:
    #         await connection.execute("UPDATE users SET ... WHERE id = $1", event.user_id)
    print(f"welcome, {event.email}", flush=True)
