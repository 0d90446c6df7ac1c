"""Dead letters: reading them, putting them back to the group that they came from, dropping them.

A replay puts the entry, which is still in the stream under its own id, back into the pending list of its
group and of no other; a keeper hands it to a worker within seconds. That and the letter's removal are one
script. An entry that was trimmed from the stream can't be put back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supervisor.broker.scripts import REPLAY
from supervisor.names import REPLAY_CONSUMER, crashes_key, dead_key, retries_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

_PAGE = 200
_PREFIX = "field:"
_JSON = "fields_json"


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    #: Its own id, in the stream of dead letters.
    letter_id: str
    stream: str
    group: str
    #: The id of the message that was given up.
    id: str
    reason: str
    deliveries: int
    handler: str
    worker: str
    dead_at_ms: int
    error: str
    traceback: str
    #: How its worker was ended, where that is the reason: the signal's name, the exit code, the stack if it told one.
    signal: str
    exit_code: int | None
    stack: str
    fields: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant; empty: all of them."""

    #: Parts of the text, in any case.
    reason: str = ""
    handler: str = ""
    #: Somewhere in the message's fields, its id or the error.
    text: str = ""
    #: Given up at least so long ago.
    older_than_ms: int = 0

    def fits(self, letter: Letter, now_ms: int) -> bool:
        """Whether the letter is meant."""
        if now_ms - letter.dead_at_ms < self.older_than_ms:
            return False
        said = "\n".join([letter.id, letter.error, *letter.fields, *letter.fields.values()])
        pairs = ((self.reason, letter.reason), (self.handler, letter.handler), (self.text, said))
        return all(wanted.lower() in found.lower() for wanted, found in pairs)


async def letters(redis: Redis, stream: str, group: str) -> AsyncIterator[Letter]:
    """All letters of a group, the oldest first. Raises redis-py's errors."""
    key, start = dead_key(stream, group), "-"
    while page := await redis.execute_command("XRANGE", key, start, "+", "COUNT", _PAGE):
        for letter_id, flat in page:
            yield _letter(letter_id.decode(), stream, group, flat)
        start = f"({page[-1][0].decode()}"


async def replay(redis: Redis, letter: Letter) -> str:
    """Put the message back: "replayed", or why not: "gone" (the letter), "trimmed" (the entry)."""
    stream, group = letter.stream, letter.group
    keys = (stream, dead_key(stream, group), retries_key(stream, group), crashes_key(stream, group))
    said: Any = await redis.eval(REPLAY.text, len(keys), *keys, group, letter.letter_id, letter.id, REPLAY_CONSUMER)
    return str(said.decode())


async def drop(redis: Redis, letter: Letter) -> bool:
    """Remove the letter for good; False when it was gone already."""
    return bool(await redis.xdel(dead_key(letter.stream, letter.group), letter.letter_id))


def _letter(letter_id: str, stream: str, group: str, flat: dict[bytes, bytes]) -> Letter:
    told = {_text(name): _text(value) for name, value in flat.items()}
    fields = {name.removeprefix(_PREFIX): value for name, value in told.items() if name.startswith(_PREFIX)}
    if _JSON in told:
        fields |= json.loads(told[_JSON])
    return Letter(
        letter_id=letter_id,
        stream=stream,
        group=group,
        id=told.get("id", ""),
        reason=told.get("reason", ""),
        deliveries=int(told.get("deliveries", 0)),
        handler=told.get("handler", ""),
        worker=told.get("worker", ""),
        dead_at_ms=int(told.get("dead_at_ms", 0)),
        error=told.get("error", ""),
        traceback=told.get("traceback", ""),
        signal=told.get("signal", ""),
        exit_code=int(told["exit_code"]) if "exit_code" in told else None,
        stack=told.get("stack", ""),
        fields=fields,
    )


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
