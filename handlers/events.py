"""The events that the handlers take."""

from datetime import datetime

from pydantic import BaseModel, EmailStr


class UserCreated(BaseModel):
    """A user was stored; published by `POST /users` in the same script."""

    user_id: int
    email: EmailStr
    name: str | None = None
    #: When it happened, by the producer's clock; a producer may leave it out.
    created_at: datetime | None = None
