"""The example's producer: a user is stored and `events:user_created` published in one script.

Keys, all in the stream's hash slot, so that the script is atomic in Redis Cluster too:

- `users:{events:user_created}:last_id` - the highest user id, a number;
- `users:{events:user_created}:by_id` - a hash: user id -> the user as JSON;
- `registrations:{events:user_created}:by_day` - a hash: UTC day -> how many, counted by the group `analytics`.

The e-mail address is not unique: posting one twice makes two users.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, EmailStr, Field

from supervisor.broker.scripts import Script

from .problems import Problem
from .schemas import json_response, only_json, problems
from .service import PublisherDep, RedisDep

router = APIRouter(prefix="/users", tags=["users"])
STREAM = "events:user_created"
LAST_ID_KEY = f"users:{{{STREAM}}}:last_id"
USERS_KEY = f"users:{{{STREAM}}}:by_id"
REGISTRATIONS_KEY = f"registrations:{{{STREAM}}}:by_day"
#: The highest number that JSON's readers take as it is.
USER_ID_MAX = 2**53
COUNT_MAX = 1_000
UserId = Annotated[int, Path(ge=1, le=USER_ID_MAX)]

#: KEYS stream, last id, users; ARGV e-mail, name, time. Gives the user's id and the event's.
#: All that can fail comes before the first write: the types of the keys are seen by reading them, and XADD is first.
_CREATE_USER = Script(
    """
local user_id = string.format('%.0f', tonumber(redis.call('GET', KEYS[2]) or '0') + 1)
redis.call('HLEN', KEYS[3])
local user = {user_id = tonumber(user_id), email = ARGV[1], created_at = ARGV[3]}
local fields = {'user_id', user_id, 'email', ARGV[1], 'created_at', ARGV[3]}
if ARGV[2] ~= '' then
  user.name = ARGV[2]
  fields[7], fields[8] = 'name', ARGV[2]
end
local record = cjson.encode(user)
local event_id = redis.call('XADD', KEYS[1], '*', unpack(fields))
redis.call('SET', KEYS[2], user_id)
redis.call('HSET', KEYS[3], user_id, record)
return {user_id, event_id}
"""
)


class NewUser(BaseModel):
    """A registration."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"email": "ada@example.com", "name": "Ada"}}
    )

    email: EmailStr
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class User(BaseModel):
    """A registered user."""

    user_id: int
    email: str
    name: str | None = None
    created_at: datetime


class CreatedUser(User):
    """The answer to a registration."""

    #: The id of the event in the stream.
    event_id: str


class Users(BaseModel):
    """A page of users, the newest first."""

    total: int
    users: list[User]
    #: The address of the following page, null after the last one.
    next: str | None


@router.post(
    "",
    status_code=201,
    response_model=CreatedUser,
    operation_id="create_user",
    summary="Register a user",
    dependencies=[Depends(only_json)],
    responses=problems("malformed-json", "wrong-type", "body-too-large", "media-type", "invalid", "redis-unavailable"),
)
async def create_user(new: NewUser, publisher: PublisherDep) -> Response:
    """Stores the user and publishes `events:user_created`; neither exists without the other."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    made = await publisher.evaluate(_CREATE_USER, [STREAM, LAST_ID_KEY, USERS_KEY], new.email, new.name or "", now)
    user_id, event_id = (part.decode() for part in made)
    body: dict[str, Any] = {"user_id": int(user_id), "email": new.email, "name": new.name, "created_at": now}
    return json_response({**body, "event_id": event_id}, 201, {"Location": f"/users/{user_id}"})


@router.get(
    "",
    response_model=Users,
    operation_id="list_users",
    summary="Users, the newest first",
    responses=problems("invalid", "wrong-type", "redis-unavailable"),
)
async def list_users(
    redis: RedisDep,
    count: Annotated[int, Query(ge=1, le=COUNT_MAX)] = 100,
    before: Annotated[int | None, Query(ge=1, le=USER_ID_MAX, description="Only users with a lower id")] = None,
) -> Response:
    """How many there are, and a page of them."""
    pipe = redis.pipeline()
    pipe.get(LAST_ID_KEY)
    pipe.hlen(USERS_KEY)
    last, total = await pipe.execute()
    newest = min(int(last or 0), before - 1 if before else USER_ID_MAX)
    numbers = range(newest, max(0, newest - count), -1)
    records: list[bytes | None] = await redis.execute_command("HMGET", USERS_KEY, *numbers) if numbers else []
    users = [{"name": None, **orjson.loads(record)} for record in records if record is not None]
    following = f"/users?count={count}&before={numbers[-1]}" if numbers and numbers[-1] > 1 else None
    return json_response({"total": total, "users": users, "next": following})


@router.get(
    "/registrations",
    operation_id="registrations",
    summary="Registrations per day",
    responses={200: {"content": {"application/json": {"example": {"2026-11-24": 3}}}}, **problems("redis-unavailable")},
)
async def registrations(redis: RedisDep) -> dict[str, int]:
    """What the group `analytics` has counted, by UTC day."""
    counted: dict[Any, Any] = await redis.hgetall(REGISTRATIONS_KEY)
    return {day.decode(): int(count) for day, count in sorted(counted.items())}


@router.get(
    "/{user_id}",
    response_model=User,
    operation_id="read_user",
    summary="Read a user",
    responses=problems("not-found", "invalid", "redis-unavailable"),
)
async def read_user(user_id: UserId, redis: RedisDep) -> Response:
    """By the id that registering gave."""
    record = await redis.hget(USERS_KEY, str(user_id))
    if record is None:
        raise Problem("not-found", f"there is no user {user_id}")
    return json_response({"name": None, **orjson.loads(record)})
