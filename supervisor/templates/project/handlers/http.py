"""Routes of this project, served by the HTTP service: `routers` in config.toml names this module."""

from fastapi import APIRouter
from supervisor.fastapi import PublisherDep

from handlers.users import UserCreated

router = APIRouter(tags=["users"])


@router.post("/users", status_code=202)
async def create_user(user: UserCreated, publisher: PublisherDep) -> dict[str, str]:
    """Publish the event and return its id; the handlers do the rest."""
    return {"id": (await publisher.publish("events:user_created", user)).id}
