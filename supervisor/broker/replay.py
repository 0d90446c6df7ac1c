"""Replays dead letters to the group that they came from, or removes them: many in one round trip, an outcome for each.

A replay appends a copy of the message to the group's replay stream, whose workers read it beside the handler's stream
and give it to the handler under the id that it had. The copy and the letter's removal are one script.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from supervisor.broker.redis_errors import code_of
from supervisor.broker.scripts import DROP_HALTING, REPLAY
from supervisor.core.dead_letter import Letter
from supervisor.core.ids import normalize_id
from supervisor.keys import crashes_key, dead_key, released_key, replay_key, retries_key, turn_field, turn_key

REPLAYED, DROPPED = "replayed", "dropped"
#: Texts for the other outcomes. The letter is kept in all of them but the first.
WORDS = {
    "gone": "was settled by somebody else",
    "pending": "is with a worker already and may be settled at any time",
    "no-id": "can't be replayed, since it has no message id",
    "no-group": "can't be replayed, since its group no longer exists; a pool that handles it creates it again",
    "refused": "was refused by Redis",
}
#: Scripts in one round trip; each takes some tens of microseconds of the server's time.
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome for one letter."""

    letter: Letter
    #: `replayed` or `dropped`, or a key of WORDS.
    outcome: str
    #: The error, where Redis refused.
    error: ResponseError | None = None

    def as_dict(self) -> dict[str, str]:
        """Return the outcome for JSON."""
        found = {"letter_id": self.letter.letter_id, "id": self.letter.id, "outcome": self.outcome}
        return found | ({"error": f"{code_of(self.error)}: {self.error}"} if self.error else {})


async def replay(redis: Redis, letters: Sequence[Letter]) -> list[Outcome]:
    """Replay the letters' messages.

    Raises redis-py's errors when the connection is lost: what was done is then unknown, and the call may be repeated.
    """
    outcomes = iter(await _each(redis, [letter for letter in letters if _message_id(letter)], _replay_command))
    return [next(outcomes) if _message_id(letter) else Outcome(letter, "no-id") for letter in letters]


async def drop(redis: Redis, letters: Sequence[Letter]) -> list[Outcome]:
    """Remove the letters for good. Raises as `replay` does."""
    return await _each(redis, letters, _drop_command)


async def _each(redis: Redis, letters: Sequence[Letter], command: Any) -> list[Outcome]:
    found: list[Outcome] = []
    for at in range(0, len(letters), _AT_ONCE):
        part = letters[at : at + _AT_ONCE]
        pipe = redis.pipeline(transaction=False)
        streams: set[str] = set()
        for letter in part:
            pipe.execute_command(*command(letter, first=letter.stream not in streams))
            streams.add(letter.stream)
        replies = await pipe.execute(raise_on_error=False)
        found += [_outcome(letter, reply) for letter, reply in zip(part, replies, strict=True)]
    return found


def _replay_command(letter: Letter, *, first: bool) -> tuple[Any, ...]:
    """Return the command; only the first one to a stream's server carries the script's text."""
    stream, group = letter.stream, letter.group
    keys = (
        stream, dead_key(stream, group), retries_key(stream, group), crashes_key(stream, group),
        replay_key(stream, group),
    )  # fmt: skip
    script = ("EVAL", REPLAY.text) if first else ("EVALSHA", REPLAY.sha)
    return (*script, len(keys), *keys, group, letter.letter_id, _message_id(letter))


def _message_id(letter: Letter) -> str:
    """Return the message id in both parts; empty if the letter has none, as anybody can write letters."""
    try:
        return normalize_id(letter.id)
    except ValueError:
        return ""


def _drop_command(letter: Letter, *, first: bool) -> tuple[Any, ...]:
    stream, group = letter.stream, letter.group
    if not (letter.halts and _message_id(letter)):
        return ("XDEL", dead_key(stream, group), letter.letter_id)
    keys = dead_key(stream, group), turn_key(stream, group, letter.halts), released_key(stream, group)
    field = turn_field(letter.halts.encode())
    return ("EVAL", DROP_HALTING.text, len(keys), *keys, letter.letter_id, _message_id(letter), field)


def _outcome(letter: Letter, reply: Any) -> Outcome:
    if isinstance(reply, ResponseError):
        return Outcome(letter, "refused", reply)
    if isinstance(reply, Exception):
        raise reply
    if isinstance(reply, int):
        return Outcome(letter, DROPPED if reply else "gone")
    return Outcome(letter, str(reply.decode()))
