"""Group `analytics`: how many users registered on each day (UTC).

`registrations:{events:user_created}:<day>` is the set of the day's user ids, so a message that is delivered twice
counts once: the identity is the producer's, since a stream's ids may come again after a failover.
`registrations:{events:user_created}:by_day` is a hash of the counts, which `GET /users/registrations` shows.
"""

from supervisor import Message, context, handler

DAY = "registrations:{{events:user_created}}:{day}"
COUNTS = DAY.format(day="by_day")
#: A day's set is kept this long after its last change; a later redelivery would count again.
KEEP_S = 7 * 24 * 3600

_COUNT_ONCE = """
if redis.call('SADD', KEYS[2], ARGV[1]) == 1 then
  redis.call('HINCRBY', KEYS[1], ARGV[2], 1)
end
return redis.call('EXPIRE', KEYS[2], ARGV[3])
"""


@handler("events:user_created", group="analytics", max_deliveries=10)
async def track_user_registration(message: Message) -> None:
    """Count the user once, on the day on which the event was published."""
    day = message.published_at.date().isoformat()
    user = message.fields["user_id"]
    await context().redis.eval(_COUNT_ONCE, 2, COUNTS, DAY.format(day=day), user, day, KEEP_S)
