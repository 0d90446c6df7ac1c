"""What happens when a user was created."""

from pydantic import BaseModel
from supervisor import handler


class UserCreated(BaseModel):
    """A message of the stream `events:user_created`; one that does not fit becomes a dead letter."""

    user_id: int
    email: str


@handler("events:user_created", group="welcome")
async def welcome(event: UserCreated) -> None:
    """Returning means done. Raising means that the message is tried again later."""
    print(f"welcome, {event.email}", flush=True)
