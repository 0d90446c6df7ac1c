"""The events that the handlers receive."""

from datetime import datetime

from pydantic import BaseModel, EmailStr


class UserCreated(BaseModel):
    """A user was stored. `POST /users` stores the user and publishes this event in one script."""

    user_id: int
    email: EmailStr
    name: str | None = None
    #: When the user was stored, by the producer's clock. A producer may leave it out.
    created_at: datetime | None = None
