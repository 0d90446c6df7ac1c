"""Dead letters for tests: written as a worker writes them, and read."""

from typing import Any

from supervisor.broker.dead_letters import pages
from supervisor.core.dead_letter import Letter
from supervisor.core.outcome import Dead
from supervisor.keys import dead_key
from supervisor.messages import Message
from supervisor.worker.dead_letter_fields import dead_letter


def add_dead_letter(
    redis: Any,
    stream: str,
    group: str,
    fields: dict[Any, Any],
    *,
    entry: str | None = None,
    letter: str = "*",
    reason: str = "failed",
    handler: str = "handlers.mail.send",
    dead_at_ms: int = 0,
    trimmed: bool = False,
) -> tuple[str, str]:
    """Publish a message and write its dead letter, as of the message that the group has read; (letter id, id)."""
    try:
        redis.xgroup_create(stream, group, "$", mkstream=True)
    except Exception as error:
        if "BUSYGROUP" not in str(error):
            raise
    given = _text(redis.xadd(stream, fields, id=entry or "*"))
    redis.execute_command("XGROUP", "SETID", stream, group, given)
    if trimmed:
        redis.xdel(stream, given)
    flat = [_bytes(part) for pair in fields.items() for part in pair]
    told = dead_letter(
        Message.from_reply(None, [(given.encode(), flat)])[0],  # type: ignore[arg-type]
        Dead(reason, 5),
        error=ValueError(f"no luck with {given}"),
        crash=None,
        worker="host:0",
        handler=handler,
        now_ms=dead_at_ms or 1,
    )
    return _text(redis.execute_command("XADD", dead_key(stream, group), letter, *told)), given


async def letters(redis: Any, stream: str, group: str) -> list[Letter]:
    """Return all dead letters of the group."""
    return [letter async for page in pages(redis, stream, group) for letter in page]


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
