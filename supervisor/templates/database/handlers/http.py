"""Routes of this project, served by the HTTP service: `routers` in config.toml names this module."""

from fastapi import APIRouter
from pydantic import BaseModel
from supervisor.contrib.sqlalchemy import add

from handlers.database import User, sessions
from handlers.users import UserCreated

router = APIRouter(tags=["users"])


class NewUser(BaseModel):
    """A registration."""

    email: str


@router.post("/users", status_code=201)
async def create_user(new: NewUser) -> UserCreated:
    """Store the user and its event in one transaction; the relay publishes the event."""
    async with sessions.begin() as session:
        user = User(email=new.email)
        session.add(user)
        await session.flush()
        event = UserCreated(user_id=user.id, email=user.email)
        add(session, "events:user_created", event)
    return event
