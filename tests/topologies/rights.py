"""The rights that a pool's user needs in Redis, as README.md lists them."""

from tests.support.topologies import Admin

PASSWORD = "s3cret"
#: The streams of the project, and the supervisor's keys: leases, dead letters, retries.
KEYS = "~events ~orders ~supervisor:* &__redis__:invalidate"
#: All that a pool, its commands and its HTTP service send.
COMMANDS = """
    +ping +info +time
    +xreadgroup +xack +xadd +xgroup +xpending +xclaim +xinfo +xlen +xrange +xrevrange +xread +xdel +xtrim
    +eval +evalsha +multi +exec
    +hget +hset +hsetnx +hdel +hmget +hgetall +hlen +hkeys +hincrby +get +set +del +exists
    +zadd +zrem +zrange +zrangebyscore +zscore +zcard +zcount +zscan +zrank +zremrangebyrank
    +sadd +srem +srandmember +hrandfield +expire +rename +persist
"""
#: Without these a drain waits for reads to end by themselves, a lost connection may keep a message for some seconds,
#: the keeper polls for messages for later, and how durable the server is can only be guessed.
OPTIONAL = (
    "+client|setname +client|id +client|unblock +client|list +client|kill +client|tracking +subscribe +config|get"
)
#: Besides, in a cluster.
CLUSTER = "+cluster|slots +command +asking"
#: The example's own keys, for `POST /users` and `GET /users`.
EXAMPLE = "~events:user_created ~users:* ~registrations:* +hgetall"


def grant(admin: Admin, *rules: str) -> None:
    """Give the user `pool` these."""
    admin.execute_command("ACL", "SETUSER", "pool", *" ".join(rules).split())


def refusals(admin: Admin) -> list[str]:
    """What the server has refused. redis-py sends its own name, and goes on when that is refused."""
    log = [f"{entry['reason']} {entry['object']}" for entry in admin.acl_log()]
    return [line for line in log if "setinfo" not in line]
