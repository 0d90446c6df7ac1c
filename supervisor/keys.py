"""The names of all keys and consumers in Redis: the only place that builds one.

Streams and groups carry the user's own names. What is ours about a stream lives in the stream's
hash slot, so that a script may touch both in Redis Cluster: the stream's hash tag where it has
one, else its whole name as the tag.
"""

from __future__ import annotations

PREFIX = "supervisor"
#: A hash: id of a pool that has ever held a lease -> when its keeper was last seen, Unix ms. So a consumer that only
#: looks like one of ours is left alone.
POOLS_KEY = f"{PREFIX}:pools"

#: The consumer that is shown for a replayed message until a worker reads it.
REPLAY_CONSUMER = f"{PREFIX}:replay"


def hash_tag(stream: str) -> str:
    """What Redis Cluster hashes of `stream`: the text in its first non-empty braces, else all of it.

    The rule is the Cluster specification's ("Hash tags").
    """
    start = stream.find("{")
    if start >= 0:
        end = stream.find("}", start + 1)
        if end > start + 1:
            return stream[start + 1 : end]
    return stream


def fits_cluster(stream: str) -> bool:
    """Whether other keys can be in the slot of `stream`: a `}` that ends no tag can be in no other key's tag."""
    return hash_tag(stream) != stream or "}" not in stream


def _stream_key(stream: str) -> str:
    """`supervisor:{events}` for `events`; `supervisor:{a}:b` for `{a}:b`, which has a tag itself."""
    tagged = stream if hash_tag(stream) != stream else f"{{{stream}}}"
    return f"{PREFIX}:{tagged}"


def dead_key(stream: str, group: str) -> str:
    """The stream of the group's dead letters."""
    return f"{_stream_key(stream)}:{group}:dead"


def replay_key(stream: str, group: str) -> str:
    """The stream of the group's own that holds copies of the messages that are replayed.

    It has one group, of the same name. What is kept beside a stream is kept beside this one too, by its name.
    """
    return f"{_stream_key(stream)}:{group}:replay"


def crashes_key(stream: str, group: str) -> str:
    """A hash: message id -> how many processes died with that message alone in hand."""
    return f"{_stream_key(stream)}:{group}:crashes"


def isolated_key(stream: str, group: str) -> str:
    """A hash: consumer -> id of the message that it runs alone, with nothing else in hand."""
    return f"{_stream_key(stream)}:{group}:alone"


def retries_key(stream: str, group: str) -> str:
    """A hash: message id -> `<failed attempts>:<due, Unix ms>:<delay, ms>` of the messages that wait for a retry."""
    return f"{_stream_key(stream)}:{group}:retries"


def idempotency_key(stream: str, key: str) -> str:
    """The id of the message that was published to `stream` under the client's `key`."""
    return f"{_stream_key(stream)}:idempotency:{key}"


def reaper_key(stream: str, group: str) -> str:
    """Who reaps in this group now: the token of a pool, expiring."""
    return f"{_stream_key(stream)}:{group}:reaper"


def trimmer_key(stream: str) -> str:
    """Who trims this stream now: the token of a pool, expiring."""
    return f"{_stream_key(stream)}:trimmer"


def host_key(pool_id: str) -> str:
    """The lease of a pool; holds its token, expires when its keeper is gone."""
    return f"{PREFIX}:host:{pool_id}"


def pool_id(host: str, name: str) -> str:
    """What a pool's consumers and its lease are named after: `<host>` or `<host>:<name>`."""
    return f"{host}:{name}" if name else host


def consumer_name(pool: str, slot: int) -> str:
    """The name of a slot's consumer, the same for every incarnation."""
    return f"{pool}:{slot}"
