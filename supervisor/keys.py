"""Builds the names of all keys and consumers in Redis; no other module builds one.

Streams and groups carry the user's own names. Every other key about a stream is in the stream's hash slot, so that a
script may touch both in Redis Cluster: the tag is the stream's own hash tag if it has one, else its whole name.
"""

PREFIX = "supervisor"
#: A hash: id of each pool that has held a lease -> when its keeper was last seen, Unix ms. A consumer whose name only
#: looks like a pool's is left alone.
POOLS_KEY = f"{PREFIX}:pools"

#: A hash: each stream that a publisher has given messages for later -> when it did, Unix ms. Keepers find there the
#: streams that have no handler.
LATER_STREAMS_KEY = f"{PREFIX}:later"

#: The consumer that is shown for a replayed message until a worker reads it.
REPLAY_CONSUMER = f"{PREFIX}:replay"
#: The consumer that holds messages that wait for their turn (`include/turns.lua`).
TURNS_CONSUMER = f"{PREFIX}:turns"

#: The consumer that holds messages that wait for their rate (`reserve_rate.lua`).
RATES_CONSUMER = f"{PREFIX}:rates"
#: Consumers that hold what waits, and run nothing.
WAITING_CONSUMERS = (TURNS_CONSUMER, RATES_CONSUMER)


def hash_tag(stream: str) -> str:
    """Return the part of `stream` that Redis Cluster hashes: the text in its first non-empty braces, else all of it.

    The rule is the Cluster specification's ("Hash tags").
    """
    start = stream.find("{")
    if start >= 0:
        end = stream.find("}", start + 1)
        if end > start + 1:
            return stream[start + 1 : end]
    return stream


def fits_cluster(stream: str) -> bool:
    """Return whether other keys can be in the slot of `stream`: no tag can contain a `}` that ends none."""
    return hash_tag(stream) != stream or "}" not in stream


def _stream_key(stream: str) -> str:
    """Return `supervisor:{events}` for `events`, and `supervisor:{a}:b` for `{a}:b`, which has a tag itself."""
    tagged = stream if hash_tag(stream) != stream else f"{{{stream}}}"
    return f"{PREFIX}:{tagged}"


def dead_key(stream: str, group: str) -> str:
    """The stream of the group's dead letters."""
    return f"{_stream_key(stream)}:{group}:dead"


def replay_key(stream: str, group: str) -> str:
    """The stream of the group's own that holds copies of the messages that are replayed.

    It has one group, of the same name. The other keys of a stream exist for this stream too.
    """
    return f"{_stream_key(stream)}:{group}:replay"


def crashes_key(stream: str, group: str) -> str:
    """A hash: message id -> number of processes that died while they ran only that message."""
    return f"{_stream_key(stream)}:{group}:crashes"


def isolated_key(stream: str, group: str) -> str:
    """A hash: consumer -> id of the message that it runs in isolation."""
    return f"{_stream_key(stream)}:{group}:alone"


def trimmed_key(stream: str, group: str) -> str:
    """A hash: how many entries were removed from the stream before the group read them (`trimmed_unread.lua`)."""
    return f"{_stream_key(stream)}:{group}:trimmed"


def retries_key(stream: str, group: str) -> str:
    """A hash: message id -> retry record (`core/retry_record.py`) of the messages that failed."""
    return f"{_stream_key(stream)}:{group}:retries"


def turn_field(key: bytes) -> bytes:
    """The field of the hash `turns` that stands for the row of a key; the sorted set's name ends with it."""
    return b":" + key


def turn_key(stream: str, group: str, key: str) -> str:
    """A sorted set: the unsettled messages with that key, in order, where there are several (`include/turns.lua`)."""
    return f"{group_turn_key(stream, group)}:{key}"


def group_turn_key(stream: str, group: str) -> str:
    """The same for all messages of the group, where `group_concurrency` limits it."""
    return f"{_stream_key(stream)}:{group}:turn"


def turns_key(stream: str, group: str) -> str:
    """A hash: the message of each key that has one, and what `include/turns.lua` notes of the group."""
    return f"{_stream_key(stream)}:{group}:turns"


def rates_key(stream: str, group: str) -> str:
    """A sorted set: when the next message of each rate may start (GCRA), us of the rates' clock; it expires.

    The member is empty for the whole group, and a colon and the value of the handler's `rate_key`.
    """
    return f"{_stream_key(stream)}:{group}:rates"


def due_key(stream: str, group: str) -> str:
    """A sorted set: messages that wait for their rate, by the time at which they are due, ms of the rates' clock."""
    return f"{_stream_key(stream)}:{group}:due"


def behind_key(stream: str, group: str) -> str:
    """How far the clock of the group's rates is behind the server's, ms (`include/rate_clock.lua`)."""
    return f"{_stream_key(stream)}:{group}:behind"


def before_change(key: str) -> str:
    """What is left of `key` from before the rate was changed (`change_rate.lua`)."""
    return f"{key}:before"


def interval_key(stream: str, group: str) -> str:
    """The interval of the rate by which those times were reserved, us, and its last change (`change_rate.lua`)."""
    return f"{_stream_key(stream)}:{group}:interval"


def released_key(stream: str, group: str) -> str:
    """A set: the fields of rows in which a turn has become free while no worker was there to pass it on."""
    return f"{_stream_key(stream)}:{group}:released"


def idempotency_key(stream: str, key: str) -> str:
    """The fingerprint and ids of the messages that were published to `stream` under the client's `key`."""
    return f"{_stream_key(stream)}:idempotency:{key}"


def later_key(stream: str) -> str:
    """A sorted set of the messages that are published later: due time in Unix ms, and a JSON text."""
    return f"{_stream_key(stream)}:later"


def cron_key(stream: str) -> str:
    """A hash: name of a schedule of this stream -> its last tick in Unix ms, and when it comes."""
    return f"{_stream_key(stream)}:cron"


def cron_paused_key(stream: str) -> str:
    """A hash: name of a paused schedule of this stream -> since when, Unix ms."""
    return f"{_stream_key(stream)}:cron:paused"


def relayed_key(stream: str) -> str:
    """A sorted set: keys of outbox rows that were published to `stream` and may not be deleted yet -> Unix ms."""
    return f"{_stream_key(stream)}:relayed"


def origins_key(stream: str) -> str:
    """A stream: id of an entry -> what published it, where that was not a producer (`include/origin.lua`)."""
    return f"{_stream_key(stream)}:origins"


def cancelled_key(stream: str) -> str:
    """A sorted set: ids of the messages for later that were cancelled lately -> when, Unix ms."""
    return f"{_stream_key(stream)}:cancelled"


def emits_key(stream: str, group: str) -> str:
    """A sorted set: the streams to which the group's handler has returned `Emit` lately, by Unix ms."""
    return f"{_stream_key(stream)}:{group}:emits"


def message_keys_key(stream: str, group: str) -> str:
    """A hash: unsettled message -> its key, where the handler's key is a function; for `explain`."""
    return f"{_stream_key(stream)}:{group}:keys"


def reaper_key(stream: str, group: str) -> str:
    """The token of the pool whose keeper is elected to reap in this group; it expires."""
    return f"{_stream_key(stream)}:{group}:reaper"


def trimmer_key(stream: str) -> str:
    """The token of the pool whose keeper is elected to trim this stream; it expires."""
    return f"{_stream_key(stream)}:trimmer"


def host_key(pool_id: str) -> str:
    """The lease of a pool: holds its token, expires when its keeper is gone."""
    return f"{PREFIX}:host:{pool_id}"


def pool_id(host: str, name: str) -> str:
    """Return the prefix of a pool's consumers and lease: `<host>` or `<host>:<name>`."""
    return f"{host}:{name}" if name else host


def consumer_name(pool: str, slot: int) -> str:
    """Return the name of a slot's consumer, the same for every incarnation."""
    return f"{pool}:{slot}"
