"""The events that the handlers take."""

from pydantic import BaseModel, EmailStr


class UserCreated(BaseModel):
    """A user was stored; published by `POST /users` in the same script."""

    user_id: int
    email: EmailStr
    name: str | None = None
