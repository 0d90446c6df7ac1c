"""The settler of a worker process, as `worker/settler.py` has it: it repeats what was not confirmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from supervisor.broker.scripts import ACK_RETRIED, DEAD_LETTER, RETRY_LATER, Script
from supervisor.core.outcome import Dead
from supervisor.keys import isolated_key
from supervisor.worker.settler import Keys
from tests.model.tasks import Command, Trip, Until


class Settler:
    """As `worker.settler.Settler`; what is on its way is (command, whose, ids)."""

    def __init__(self, progress: Callable[[], None]) -> None:
        """`progress` is called when something was confirmed."""
        self._progress = progress
        self.items: list[tuple[Command, Keys, tuple[bytes, ...]]] = []
        self.unconfirmed: list[tuple[Command, Keys, tuple[bytes, ...]]] = []

    @property
    def idle(self) -> bool:
        return not self.items and not self.unconfirmed

    def ids(self, keys: Keys) -> set[bytes]:
        return {entry for _, of, ids in (*self.items, *self.unconfirmed) for entry in ids if of == keys}

    def ack(self, keys: Keys, ids: Sequence[bytes]) -> None:
        self.items.append((("XACK", keys.stream, keys.group, *ids), keys, tuple(ids)))

    def ack_retried(self, keys: Keys, *ids: bytes) -> None:
        self._script(keys, ACK_RETRIED, (keys.stream, keys.retries, keys.crashes), keys.group, *ids, ids=ids)

    def unmark(self, keys: Keys, consumer: str) -> None:
        self.items.append((("HDEL", isolated_key(keys.stream, keys.group), consumer), keys, ()))

    def retry_later(self, keys: Keys, entry: bytes, attempts: int, due_ms: int, delay_ms: int) -> None:
        self._script(
            keys, RETRY_LATER, (keys.stream, keys.retries), keys.group, entry, f"{attempts}:{due_ms}:{delay_ms}", ids=()
        )

    def dead(self, keys: Keys, entry: bytes, outcome: Dead) -> None:
        letter = ("id", entry, "reason", outcome.reason, "deliveries", outcome.attempts)
        names = (keys.stream, keys.retries, keys.crashes, keys.dead)
        self._script(keys, DEAD_LETTER, names, keys.group, entry, *letter, ids=(entry,))

    async def run(self) -> None:
        while True:
            await Until(lambda: self.items)
            while self.items or self.unconfirmed:
                self.unconfirmed += self.items
                self.items = []
                try:
                    await Trip([command for command, *_ in self.unconfirmed])
                except (RedisError, OSError):
                    continue
                self.unconfirmed = []
                self._progress()

    def _script(
        self, keys: Keys, script: Script, names: Sequence[str], *arguments: Any, ids: tuple[bytes, ...]
    ) -> None:
        self.items.append((("EVAL", script.text, len(names), *names, *arguments), keys, ids))
