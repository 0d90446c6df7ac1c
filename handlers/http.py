"""Routes for users, which the HTTP service mounts: `[api] routers = ["handlers.http:router"]`.

`POST /users` stores the user and publishes `events:user_created` in one script. The script is atomic in Redis
Cluster too, since all its keys are in the stream's hash slot:

- `users:{events:user_created}:last_id` is the highest user id;
- `users:{events:user_created}:by_id` is a hash of user id and user, as JSON.

The e-mail address is not unique: posting one twice makes two users.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Response
from pydantic import BaseModel, ConfigDict, EmailStr, Field

from handlers.analytics import COUNTS
from supervisor.fastapi import PublisherDep, RedisDep

router = APIRouter(prefix="/users", tags=["users"])
STREAM = "events:user_created"
LAST_ID_KEY = f"users:{{{STREAM}}}:last_id"
USERS_KEY = f"users:{{{STREAM}}}:by_id"
#: The highest integer that every JSON reader takes exactly.
USER_ID_MAX = 2**53
COUNT_MAX = 1_000

#: KEYS stream, last id, users; ARGV e-mail, name, time. Returns the ids of the user and of the event.
#: Every command that can fail comes before the first write: reading a key shows its type, and XADD writes first.
_CREATE_USER = """
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
    created_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class CreatedUser(User):
    """The answer to a registration."""

    #: The id of the event in the stream.
    event_id: str


class Users(BaseModel):
    """A page of users, the newest first."""

    total: int
    users: list[User]
    #: The address of the next page, null after the last one.
    next: str | None


@router.post("", status_code=201)
async def create_user(new: NewUser, publisher: PublisherDep, response: Response) -> CreatedUser:
    """Store a user and publish `events:user_created`: both are stored, or neither."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    made = await publisher.evaluate(_CREATE_USER, [STREAM, LAST_ID_KEY, USERS_KEY], new.email, new.name or "", now)
    user_id, event_id = (part.decode() for part in made)
    response.headers["Location"] = f"/users/{user_id}"
    return CreatedUser(user_id=user_id, email=new.email, name=new.name, created_at=now, event_id=event_id)


@router.get("")
async def list_users(
    redis: RedisDep,
    count: Annotated[int, Query(ge=1, le=COUNT_MAX)] = 100,
    before: Annotated[int | None, Query(ge=1, le=USER_ID_MAX, description="Only users with a lower id")] = None,
) -> Users:
    """Return a page of users and how many there are."""
    pipe = redis.pipeline()
    pipe.get(LAST_ID_KEY)
    pipe.hlen(USERS_KEY)
    last, total = await pipe.execute()
    newest = min(int(last or 0), before - 1 if before else USER_ID_MAX)
    ids = range(newest, max(0, newest - count), -1)
    records: list[bytes | None] = await redis.execute_command("HMGET", USERS_KEY, *ids) if ids else []
    users = [User.model_validate_json(record) for record in records if record is not None]
    following = f"/users?count={count}&before={ids[-1]}" if ids and ids[-1] > 1 else None
    return Users(total=total, users=users, next=following)


@router.get("/registrations")
async def registrations(redis: RedisDep) -> dict[str, int]:
    """Return the registrations per day (UTC), as the group `analytics` has counted them."""
    counted: dict[Any, Any] = await redis.hgetall(COUNTS)
    return {day.decode(): int(count) for day, count in sorted(counted.items())}


@router.get("/{user_id}")
async def read_user(user_id: Annotated[int, Path(ge=1, le=USER_ID_MAX)], redis: RedisDep) -> User:
    """Return one user."""
    record = await redis.hget(USERS_KEY, str(user_id))
    if record is None:
        raise HTTPException(404, f"there is no user {user_id}")
    return User.model_validate_json(record)
