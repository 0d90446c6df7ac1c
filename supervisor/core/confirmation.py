"""Says what has to confirm a write besides the server itself: replicas, the disk."""

from typing import Any, NamedTuple


class Confirmation(NamedTuple):
    """What has to confirm a write before a publish is answered (WAIT; with `aof` WAITAOF, since Redis 7.2)."""

    #: The number of replicas.
    replicas: int = 0
    #: The append-only file is synced to disk, here and on these replicas.
    aof: bool = False
    limit_ms: int = 1_000

    @property
    def command(self) -> tuple[str | int, ...]:
        """The command that waits until the writes before it are confirmed."""
        if self.aof:
            return ("WAITAOF", 1, self.replicas, self.limit_ms)
        return ("WAIT", self.replicas, self.limit_ms)

    def missing(self, reply: Any) -> str:
        """Return what the reply to `command` says is missing; empty: nothing."""
        if isinstance(reply, Exception):
            return f"Redis can't confirm it: {reply}"
        synced, replicas = reply if self.aof else (1, reply)
        if not synced:
            return f"its file was not synced within {self.limit_ms} ms"
        if replicas < self.replicas:
            return f"{replicas} of {self.replicas} replicas have it after {self.limit_ms} ms"
        return ""
