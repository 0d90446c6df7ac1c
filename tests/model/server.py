"""The same with the supervisor's Lua scripts: each atomic, like a command. A new one is taught here first."""

from collections.abc import Callable, Iterator
from typing import Any

from supervisor.broker import scripts
from supervisor.core.dead_letter import FIELD_PREFIX
from supervisor.core.ids import parse_id
from supervisor.core.replayed_copy import ORIGIN
from tests.model.commands import Commands, flat


class Server(Commands):
    """A whole server."""

    def __init__(self, *, eager: bool = True) -> None:
        """`eager`: see `Stream`."""
        super().__init__(eager=eager)
        self._scripts: dict[bytes, Callable[[list[bytes], list[bytes]], Any]] = {}
        for script, does in (
            (scripts.ACK_RETRIED, self._ack_retried),
            (scripts.RECORD_RETRY, self._retry_later),
            (scripts.DEAD_LETTER, self._dead_letter),
            (scripts.DEAD_LETTER_UNREADABLE, self._dead_letter_unreadable),
            (scripts.REPLAY, self._replay),
            (scripts.NOW, self._now),
            (scripts.CLAIM_PENDING, self._claim_pending),
            (scripts.DELETE_CONSUMER, self._delete_consumer),
            (scripts.TAKE_LEASE, self._take_lease),
            (scripts.DROP_LEASE, self._drop_lease),
            (scripts.TRIMMED_UNREAD, self._trimmed_unread),
            (scripts.LATER_DUE, self._later_due),
        ):
            self._scripts[script.text.encode()] = self._scripts[script.sha.encode()] = does

    def cmd_eval(self, script: bytes, numkeys: bytes, *rest: bytes) -> Any:
        assert script in self._scripts, f"the model does not know this script: {script.decode()}"
        return self._scripts[script](list(rest[: int(numkeys)]), list(rest[int(numkeys) :]))

    cmd_evalsha = cmd_eval

    def _is_pending(self, key: bytes, group: bytes, entry: bytes) -> bool:
        """A group that is not there has nothing pending."""
        found = self.streams[key].groups.get(group) if key in self.streams else None
        return found is not None and parse_id(entry) in found.pending

    def _forget(self, ids: list[bytes], *keys: bytes) -> None:
        for key in keys:
            self.cmd_hdel(key, *ids)

    def _ack_retried(self, keys: list[bytes], arguments: list[bytes]) -> int:
        stream, retries, crashes, *copies = keys
        group, *ids = arguments
        acked = self.cmd_xack(stream, group, *ids)
        self._forget(ids, retries, crashes)
        for key in copies:
            self.cmd_xdel(key, *ids)
        return acked

    def _retry_later(self, keys: list[bytes], arguments: list[bytes]) -> int:
        group, entry, record = arguments
        if not self._is_pending(keys[0], group, entry):
            return 0
        self.cmd_hset(keys[1], entry, record)
        return 1

    def _dead_letter(self, keys: list[bytes], arguments: list[bytes]) -> bytes | None:
        stream, retries, crashes, dead, *copies = keys
        group, entry, *letter = arguments
        if not self._is_pending(stream, group, entry):
            return None
        letter_id = self.cmd_xadd(dead, b"*", *letter)
        self.cmd_xack(stream, group, entry)
        self._forget([entry], retries, crashes)
        for key in copies:
            self.cmd_xdel(key, entry)
        return letter_id

    def _later_due(self, _: list[bytes], __: list[bytes]) -> list[Any]:
        """No history publishes for later."""
        return [-1, []]

    def _dead_letter_unreadable(self, _: list[bytes], __: list[bytes]) -> None:
        """The entries of the model are smaller than those that this is for."""

    def _trimmed_unread(self, _: list[bytes], __: list[bytes]) -> int:
        """Nothing is trimmed in the model."""
        return 0

    def _replay(self, keys: list[bytes], arguments: list[bytes]) -> bytes:
        stream, dead, retries, crashes, copies = keys
        group, letter, entry = arguments
        found = self.cmd_xrange(dead, letter, letter)
        if not found:
            return b"gone"
        if self.cmd_xrange(stream, entry, entry):
            if group not in self.streams[stream].groups:
                return b"no-group"
            if self._is_pending(stream, group, entry):
                return b"pending"
        if copies not in self.streams or group not in self.streams[copies].groups:
            self.cmd_xgroup(b"CREATE", copies, group, b"0", b"MKSTREAM")
        self.cmd_xadd(copies, b"*", ORIGIN.encode(), entry, *_fields(found[0][1]))
        self._forget([entry], retries, crashes)
        self.cmd_xdel(dead, letter)
        return b"replayed"

    def _claim_pending(self, keys: list[bytes], arguments: list[bytes]) -> list[int]:
        group, consumer, heir, count, idle, since = arguments
        idle_ms = flat(max(int(idle), self.now_ms - int(since) + 1 if int(since) > 0 else 0))
        rows = self.cmd_xpending(keys[0], group, b"IDLE", idle_ms, b"-", b"+", count, consumer)
        claim = self._commands[b"XCLAIM"]
        claimed = claim(keys[0], group, heir, idle_ms, *(row[0] for row in rows), b"JUSTID") if rows else []
        return [len(rows), len(claimed)]

    def _now(self, _: list[bytes], __: list[bytes]) -> int:
        return self.now_ms

    def _delete_consumer(self, keys: list[bytes], arguments: list[bytes]) -> int:
        group, consumer = arguments
        if self.cmd_xpending(keys[0], group, b"-", b"+", b"1", consumer):
            return -1
        return int(self.cmd_xgroup(b"DELCONSUMER", keys[0], group, consumer))

    def _take_lease(self, keys: list[bytes], arguments: list[bytes]) -> int:
        token, ttl_ms = arguments
        if self.cmd_get(keys[0]) not in (None, token):
            return 0
        self.cmd_set(keys[0], token, b"PX", ttl_ms)
        return 1

    def _drop_lease(self, keys: list[bytes], arguments: list[bytes]) -> int:
        return self.cmd_del(keys[0]) if self.cmd_get(keys[0]) == arguments[0] else 0


def _fields(letter: list[bytes]) -> Iterator[bytes]:
    """The message's, of a dead letter's."""
    for name, value in zip(letter[::2], letter[1::2], strict=True):
        if name.startswith(FIELD_PREFIX):
            yield name.removeprefix(FIELD_PREFIX)
            yield value
