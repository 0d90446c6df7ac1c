"""Sends what was decided about deliveries to Redis: acks, retries, dead letters.

1. One pipelined write a turn for everything that was decided since the last one, up to some megabytes,
   with one variadic XACK per group.
2. What was sent and not confirmed is sent again after a lost connection: all of it may be repeated.
3. What the server refuses is kept and tried again; the message stays pending until then. A server that
   refuses for now (READONLY) gets all of it again, a command that it refuses otherwise (OOM) holds up no other.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from supervisor.broker.redis_errors import is_transient
from supervisor.broker.scripts import ACK_RETRIED, DEAD_LETTER, RETRY_LATER
from supervisor.broker.wire import pack_command
from supervisor.core.backoff import backoff_s
from supervisor.core.records import RetryRecord
from supervisor.keys import crashes_key, dead_key, isolated_key, replay_key, retries_key
from supervisor.shared_state import SharedSlot, SlotField

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from supervisor.broker.scripts import Script
    from supervisor.broker.wire import Argument, Wire
    from supervisor.log import FaultLog

_RETRY_BASE_S = 0.1
_RETRY_MAX_S = 1.0
_REFUSED_MAX_S = 30.0
_WHAT = "can't settle"
#: Lua's unpack takes about 8,000 arguments; a command of this many ids stays far from any limit.
_IDS_MAX = 1_000
#: What is sent at once is at most about this long, or dead letters of many megabytes would have to arrive together.
_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one (stream, group)."""

    stream: str
    group: str
    retries: str
    crashes: str
    dead: str
    #: The stream again, where it holds copies: they are removed when they are settled.
    copies: tuple[str, ...] = ()

    @classmethod
    def of_copies(cls, stream: str, group: str) -> Keys:
        """Those of the group's replay stream; a copy that fails becomes a dead letter of the group itself."""
        key = replay_key(stream, group)
        return cls(key, group, retries_key(key, group), crashes_key(key, group), dead_key(stream, group), (key,))

    @classmethod
    def of(cls, stream: str, group: str) -> Keys:
        """All keys that settling touches."""
        return cls(stream, group, retries_key(stream, group), crashes_key(stream, group), dead_key(stream, group))


def _nothing() -> None:
    pass


@dataclass(slots=True)
class _Item:
    """A command on its way."""

    keys: Keys
    arguments: tuple[Argument, ...]
    ids: tuple[bytes, ...] = ()
    #: Sent before without an answer: its count then says nothing.
    again: bool = False
    #: How often the server refused it.
    refusals: int = 0
    #: The message of which it notes that it is to be retried; empty: it does something else.
    notes: bytes = b""


class Settler:
    """The worker's one writer of outcomes."""

    def __init__(self, wire: Wire, shared: SharedSlot, faults: FaultLog) -> None:
        """`faults` logs what Redis refuses."""
        self._wire = wire
        self._shared = shared
        self._faults = faults
        self._loop = asyncio.get_running_loop()
        self._acks: dict[Keys, list[bytes]] = {}
        self._items: list[_Item] = []
        self._unconfirmed: list[_Item] = []
        self._refused: dict[int, _Item] = {}
        #: The last note of each message's retry that is not confirmed: one before it that was refused is dropped.
        self._notes: dict[tuple[Keys, bytes], _Item] = {}
        self._wakeup = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        #: Called when something was confirmed: there is room for more.
        self.progress: Callable[[], None] = _nothing

    @property
    def backlog(self) -> int:
        """How many ids wait for their ack to be sent or confirmed."""
        items = (*self._unconfirmed, *self._refused.values())
        return sum(map(len, self._acks.values())) + sum(len(item.ids) for item in items)

    def ids(self, keys: Keys) -> set[bytes]:
        """The ids of one (stream, group) that are decided but not confirmed; another may have the same ids."""
        items = (*self._items, *self._unconfirmed, *self._refused.values())
        return {*self._acks.get(keys, ())}.union(*(item.ids for item in items if item.keys == keys))

    def ack(self, keys: Keys, ids: Sequence[bytes]) -> None:
        """These are done."""
        self._acks.setdefault(keys, []).extend(ids)
        self._wake()

    def ack_retried(self, keys: Keys, *ids: bytes) -> None:
        """These are done, and may have failed or crashed before; at most 1,000."""
        self._script(keys, ACK_RETRIED, (keys.stream, keys.retries, keys.crashes, *keys.copies), ids)

    def retry_later(self, keys: Keys, entry: bytes, attempts: int, due_ms: int, delay_ms: int) -> None:
        """Note in Redis how often this failed, when it is due (Unix ms) and after how long; it stays pending."""
        record = RetryRecord(attempts, due_ms, delay_ms).encode()
        arguments = (RETRY_LATER.text, 2, keys.stream, keys.retries, keys.group, entry, record)
        item = self._notes[keys, entry] = _Item(keys, ("EVAL", *arguments), notes=entry)
        self._items.append(item)
        self._wake()

    def unmark(self, keys: Keys, consumer: str) -> None:
        """This consumer runs nothing alone any more."""
        self._items.append(_Item(keys, ("HDEL", isolated_key(keys.stream, keys.group), consumer)))
        self._wake()

    def dead(self, keys: Keys, entry: bytes, letter: Sequence[Argument]) -> None:
        """Give this up: write its dead letter and ack it, in one script."""
        named = (keys.stream, keys.retries, keys.crashes, keys.dead, *keys.copies)
        self._script(keys, DEAD_LETTER, named, (entry,), *letter)

    async def flush(self) -> None:
        """Wait until everything decided so far is confirmed, but for what the server refuses: that stays pending."""
        await self._idle.wait()

    async def run(self) -> None:
        """Send for ever. Cancel it after `flush`."""
        failures = 0
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            self._unconfirmed += self._take()
            while self._unconfirmed:
                failures = 0 if await self._send() else failures + 1
                if failures:
                    await asyncio.sleep(backoff_s(failures, _RETRY_BASE_S, _RETRY_MAX_S, random.random))
                    self._unconfirmed += self._take()
            if not self._wakeup.is_set():
                self._idle.set()

    def _script(
        self, keys: Keys, script: Script, named: Sequence[str], ids: tuple[bytes, ...], *more: Argument
    ) -> None:
        # EVAL and not EVALSHA: these are rare, and a server that restarted needs no second try.
        arguments = ("EVAL", script.text, len(named), *named, keys.group, *ids, *more)
        for entry in ids:
            self._notes.pop((keys, entry), None)
        self._items.append(_Item(keys, arguments, ids))
        self._wake()

    def _wake(self) -> None:
        self._wakeup.set()
        self._idle.clear()

    def _take(self) -> list[_Item]:
        items, self._items = self._items, []
        acks, self._acks = self._acks, {}
        for keys, ids in acks.items():
            for at in range(0, len(ids), _IDS_MAX):
                part = tuple(ids[at : at + _IDS_MAX])
                items.append(_Item(keys, ("XACK", keys.stream, keys.group, *part), ids=part))
        return items

    async def _send(self) -> bool:
        """Send the first of what is unconfirmed, or all of it; False when some of that has to be sent again."""
        packed: list[bytes] = []
        size = 0
        for item in self._unconfirmed:
            packed.append(pack_command(item.arguments))
            size += len(packed[-1])
            if size >= _BYTES_MAX:
                break
        sent = self._unconfirmed[: len(packed)]
        try:
            replies = await self._wire.pipeline(packed)
        except (RedisError, OSError) as error:
            self._faults.redis(_WHAT, error)
            for item in sent:
                item.again = True
            return False
        again = self._judge(sent, replies)
        self._unconfirmed[: len(sent)] = again
        self._shared.set(SlotField.SETTLE_NS, monotonic_ns())
        self.progress()
        if not self._unconfirmed and not self._refused:
            self._faults.resolved(_WHAT)
        return not again

    def _judge(self, items: list[_Item], replies: list[Any]) -> list[_Item]:
        """Those that have to be sent again with the next; what is refused for good tries again by itself."""
        again = []
        for item, reply in zip(items, replies, strict=True):
            if not isinstance(reply, Exception):
                self._confirmed(item, reply)
                continue
            self._faults.redis(_WHAT, reply)
            if isinstance(reply, ResponseError) and is_transient(reply):
                again.append(item)
            elif not self._is_outdated(item):
                self._put_off(item)
        return again

    def _is_outdated(self, item: _Item) -> bool:
        """What it notes of its message's retry was decided anew, and is perhaps written already."""
        return bool(item.notes) and self._notes.get((item.keys, item.notes)) is not item

    def _confirmed(self, item: _Item, reply: Any) -> None:
        if item.notes and not self._is_outdated(item):
            del self._notes[item.keys, item.notes]
        is_ack = item.arguments[0] == "XACK" or item.arguments[1] == ACK_RETRIED.text
        if is_ack and not item.again and reply < len(item.ids):
            self._shared.add(SlotField.LOST_CLAIM, len(item.ids) - reply)

    def _put_off(self, item: _Item) -> None:
        item.refusals += 1
        self._refused[id(item)] = item
        self._loop.call_later(backoff_s(item.refusals, _RETRY_BASE_S, _REFUSED_MAX_S, random.random), self._retry, item)

    def _retry(self, item: _Item) -> None:
        del self._refused[id(item)]
        if not self._is_outdated(item):
            self._items.append(item)
            self._wakeup.set()
