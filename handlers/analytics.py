"""Group `analytics`: counts the users who registered on each day (UTC).

`registrations:{events:user_created}:by_day` is a hash of day and count. `...:counted` is the set of the user ids
that were counted, so a message that is delivered twice counts once.
"""

from datetime import UTC, datetime

from handlers.events import UserCreated
from supervisor import context, handler

COUNTS = "registrations:{events:user_created}:by_day"
COUNTED = "registrations:{events:user_created}:counted"

#: KEYS counts, counted; ARGV user id, day. Every command that can fail comes before the first write.
_COUNT_ONCE = """
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then
  return 0
end
redis.call('HINCRBY', KEYS[1], ARGV[2], 1)
redis.call('SADD', KEYS[2], ARGV[1])
return 1
"""


@handler("events:user_created", group="analytics", max_deliveries=10)
async def track_user_registration(event: UserCreated) -> None:
    """Count the user once, on the day of the registration."""
    day = (event.created_at or datetime.now(UTC)).astimezone(UTC).date().isoformat()
    await context().redis.eval(_COUNT_ONCE, 2, COUNTS, COUNTED, str(event.user_id), day)
