"""The Lua scripts on every kind of server: dead letters of any size, and what is left when a step is refused."""

from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from supervisor.broker.scripts import DEAD_LETTER, DEAD_LETTER_UNREADABLE, REPLAY
from supervisor.keys import crashes_key, dead_key, replay_key, retries_key

STREAM, GROUP = "events", "mail"
DEAD, COPIES = dead_key(STREAM, GROUP), replay_key(STREAM, GROUP)
KEYS = (STREAM, retries_key(STREAM, GROUP), crashes_key(STREAM, GROUP), DEAD)
#: Around the limit of Lua's unpack, and far beyond it.
SIZES = [1, 3_450, 3_500, 3_550, 4_000, 20_000]


@pytest.fixture
def redis(every_server: Any) -> Any:
    with every_server.sync() as client:
        yield client


def message(redis: Any, fields: dict[bytes, bytes]) -> bytes:
    """A pending message that failed before and was charged a crash."""
    redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    entry: bytes = redis.xadd(STREAM, fields)
    redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})
    for key in KEYS[1:3]:
        redis.hset(key, entry, "1")
    return entry


def fields(count: int) -> dict[bytes, bytes]:
    return {b"f%d\xff" % n: b"v%d" % n for n in range(count)}


def dead_letter(redis: Any, entry: bytes, count: int) -> Any:
    flat = [part for name, value in fields(count).items() for part in (b"field:" + name, value)]
    return redis.eval(DEAD_LETTER.text, len(KEYS), *KEYS, GROUP, entry, "id", entry, *flat)


def nothing_is_left(redis: Any) -> bool:
    return not redis.xpending(STREAM, GROUP)["pending"] and not redis.exists(*KEYS[1:3])


@pytest.mark.parametrize("count", SIZES)
def test_a_letter_has_all_fields_and_replays_with_all_of_them(redis: Any, count: int) -> None:
    entry = message(redis, fields(count))
    letter = dead_letter(redis, entry, count)
    [(found, flat)] = redis.xrange(DEAD)
    assert found == letter and nothing_is_left(redis)
    assert flat == {b"id": entry} | {b"field:" + name: value for name, value in fields(count).items()}

    redis.xdel(STREAM, entry)
    keys = (STREAM, DEAD, *KEYS[1:3], COPIES)
    assert redis.eval(REPLAY.text, len(keys), *keys, GROUP, letter, entry) == b"replayed"
    [(_, copy)] = redis.xrange(COPIES)
    assert list(copy.items()) == [(b"supervisor:origin", entry), *fields(count).items()]
    assert redis.xlen(DEAD) == 0


@pytest.mark.parametrize("count", SIZES)
def test_an_entry_that_no_reply_can_carry_becomes_the_same_letter(redis: Any, count: int) -> None:
    entry = message(redis, fields(count))
    size = sum(len(name) + len(value) for name, value in fields(count).items())
    words = (GROUP, "host:0", entry)
    assert redis.eval(DEAD_LETTER_UNREADABLE.text, 4, *KEYS, *words, size + 1, "id", entry) is None
    assert redis.eval(DEAD_LETTER_UNREADABLE.text, 4, *KEYS, *words, size, "id", entry) == [size, entry]
    [(_, flat)] = redis.xrange(DEAD)
    assert flat == {b"id": entry} | {b"field:" + name: value for name, value in fields(count).items()}
    assert nothing_is_left(redis)


@pytest.mark.parametrize("count", [1, 20_000])
def test_a_letter_that_is_refused_leaves_the_message_pending(redis: Any, count: int) -> None:
    entry = message(redis, fields(1))
    redis.set(DEAD, "no stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        dead_letter(redis, entry, count)
    redis.delete(DEAD)
    redis.config_set("maxmemory", 1)
    with pytest.raises((OutOfMemoryError, ResponseError), match="maxmemory"):
        dead_letter(redis, entry, count)
    redis.config_set("maxmemory", 0)
    assert not redis.exists(DEAD) and not nothing_is_left(redis)


def test_a_letter_is_written_once(redis: Any) -> None:
    entry = message(redis, fields(1))
    assert dead_letter(redis, entry, 1) is not None
    assert dead_letter(redis, entry, 1) is None
    redis.xgroup_destroy(STREAM, GROUP)
    assert dead_letter(redis, entry, 1) is None
    assert redis.xlen(DEAD) == 1
