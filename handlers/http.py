"""Routes for users, which the HTTP service mounts: `[api] routers = ["handlers.http:router"]`.

`POST /users` stores the user and publishes `events:user_created` in one script. The script is atomic in Redis
Cluster too, since all its keys are in the stream's hash slot:

- `users:{events:user_created}:last_id` is the highest user id;
- `users:{events:user_created}:by_id` is a hash of user id and user, as JSON;
- `users:{events:user_created}:idempotency:<key>` is the user that was created with this Idempotency-Key.

The e-mail address is not unique: posting one twice makes two users.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, EmailStr, Field

from handlers.analytics import COUNTS
from supervisor import IdempotencyError, Published
from supervisor.fastapi import IdempotencyKeyDep, PublisherDep, RedisDep

router = APIRouter(prefix="/users", tags=["users"])
STREAM = "events:user_created"
LAST_ID_KEY = f"users:{{{STREAM}}}:last_id"
USERS_KEY = f"users:{{{STREAM}}}:by_id"
KEY_PREFIX = f"users:{{{STREAM}}}:idempotency:"
#: The highest integer that every JSON reader takes exactly.
USER_ID_MAX = 2**53
COUNT_MAX = 1_000

#: How long a key is remembered.
KEY_TTL_S = 24 * 3600

#: KEYS stream, last id, users, and with an Idempotency-Key that key; ARGV e-mail, name, time, seconds to keep the key.
#: Returns the ids of the user and of the event, the time, and what was known of the key: `new`, `same`, `other`.
#: Every command that can fail comes before the first write: reading a key shows its type, and XADD writes first.
_CREATE_USER = """
local known = KEYS[4] and redis.call('GET', KEYS[4])
if known then
  local made = cjson.decode(known)
  local same = made.email == ARGV[1] and made.name == ARGV[2]
  return {made.user_id, made.event_id, made.created_at, same and 'same' or 'other'}
end
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
if KEYS[4] then
  local made = {user_id = user_id, event_id = event_id, email = ARGV[1], name = ARGV[2], created_at = ARGV[3]}
  redis.call('SET', KEYS[4], cjson.encode(made), 'EX', ARGV[4])
end
return {user_id, event_id, ARGV[3], 'new'}
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
async def create_user(
    new: NewUser, publisher: PublisherDep, request: Request, response: Response, key: IdempotencyKeyDep
) -> CreatedUser:
    """Store a user and publish `events:user_created`: both are stored, or neither."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    keys = [STREAM, LAST_ID_KEY, USERS_KEY] + ([f"{KEY_PREFIX}{key}"] if key else [])
    values = new.email, new.name or "", now, KEY_TTL_S
    made = await publisher.evaluate(_CREATE_USER, keys, *values, repeatable=key is not None, published=_published)
    user_id, event_id, created_at, known = (part.decode() for part in made)
    if known == "same":
        response.headers["Idempotency-Replayed"] = "true"
    response.headers["Location"] = _link(request, f"/users/{user_id}")
    return CreatedUser(user_id=user_id, email=new.email, name=new.name, created_at=created_at, event_id=event_id)


@router.get("")
async def list_users(
    request: Request,
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
    following = _link(request, f"/users?count={count}&before={ids[-1]}") if ids and ids[-1] > 1 else None
    return Users(total=total, users=users, next=following)


@router.get("/registrations")
async def registrations(redis: RedisDep) -> dict[str, int]:
    """Return the registrations per day (UTC), as the group `analytics` has counted them."""
    counted: dict[Any, Any] = await redis.hgetall(COUNTS)
    return {day.decode(): int(count) for day, count in sorted(counted.items())}


@router.get("/{user_id}", responses={404: {"description": "There is no such user"}})
async def read_user(user_id: Annotated[int, Path(ge=1, le=USER_ID_MAX)], redis: RedisDep) -> User:
    """Return one user."""
    record = await redis.hget(USERS_KEY, str(user_id))
    if record is None:
        raise HTTPException(404, f"there is no user {user_id}")
    return User.model_validate_json(record)


def _published(made: list[bytes]) -> Published:
    """Return what the script has published. Raises IdempotencyError when the key stands for another user."""
    _, event_id, _, known = made
    if known == b"other":
        raise IdempotencyError("the Idempotency-Key was used for another user", "CONFLICT")
    return Published(event_id.decode(), replayed=known == b"same")


def _link(request: Request, path: str) -> str:
    """Return the address of a path, below the one under which a proxy serves the app."""
    root: str = request.scope.get("root_path", "")
    return root + path
