"""Sends the outcomes of messages to Redis: acks, retries, dead letters.

1. Each cycle takes everything that was decided since the last one and sends it as one pipeline, up to some megabytes,
   with one variadic XACK per stream.
2. What was sent and not confirmed is sent again after a lost connection: all of it may be repeated, except charges.
3. What the server refuses is kept and tried again; the message stays pending until then. A server that refuses for
   now (READONLY) gets all of it again; a command that it refuses otherwise (OOM) holds up no other.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, ResponseError

from supervisor.broker.command_connection import pack_command
from supervisor.broker.redis_errors import REDIS_FAULTS, is_transient
from supervisor.broker.scripts import ACK_RETRIED, DEAD_LETTER, NOTE_EMITS, RECORD_RETRY
from supervisor.core.backoff import backoff_s
from supervisor.core.origin import EMITS_STREAMS_MAX, ORIGINS_S
from supervisor.core.retry_record import RetryRecord
from supervisor.keys import message_keys_key
from supervisor.shared_figures import REDIS_BOUNDS_S, FigureField
from supervisor.shared_state import SharedSlot, SlotField

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from supervisor.broker.command_connection import Argument, CommandConnection
    from supervisor.broker.scripts import Script
    from supervisor.log import FaultLog
    from supervisor.worker.run_control import RunControl
    from supervisor.worker.source import Source

_RETRY_BASE_S = 0.1
_RETRY_MAX_S = 1.0
_REFUSED_MAX_S = 30.0
_EVENT = "can't settle"
#: Lua's unpack takes about 8,000 arguments; a command of this many ids stays far from any limit.
_IDS_MAX = 1_000
#: A pipeline is about this long at most, or dead letters of many megabytes would have to arrive together.
_PIPELINE_BYTES_MAX = 4 * 1024 * 1024


@dataclass(slots=True, eq=False)
class _Command:
    """A command that settles messages, until it is confirmed."""

    source: Source
    arguments: tuple[Argument, ...]
    #: The messages that it settles.
    ids: tuple[bytes, ...] = ()
    #: It is not sent again after its answer was lost: it may have been done.
    once: bool = False
    #: Its reply is the number of messages that were still pending, or begins with it.
    is_ack: bool = False
    #: It was sent before without an answer: its number then means nothing.
    repeated: bool = False
    #: How often the server refused it.
    refusals: int = 0
    #: What it said the last time.
    refusal: Exception | None = None
    #: The message whose retry it records, and the record; empty for other commands.
    retried: bytes = b""
    record: bytes = b""
    #: The script that it calls, by its digest unless the server does not know it.
    script: Script | None = None
    #: Gets the reply, and whether the command was sent more than once.
    answered: Callable[[Any, bool], None] | None = None


class Settler:
    """The writer of outcomes to one server."""

    def __init__(self, commands: CommandConnection, shared: SharedSlot, faults: FaultLog, control: RunControl) -> None:
        self._connection = commands
        self._shared = shared
        self._faults = faults
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._sources: list[Source] = []
        #: Decided and not sent, sent and not confirmed, refused and waiting.
        self._decided: list[_Command] = []
        self._sent: list[_Command] = []
        self._refused: set[_Command] = set()
        #: Digests of scripts that the server was given.
        self._known: set[str] = set()
        #: The last unconfirmed command about each message's retry; an earlier one that was refused is dropped.
        self._retries: dict[tuple[Source, bytes], _Command] = {}
        self._wakeup = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, source: Source) -> None:
        """Take what is `done` of this source with each cycle."""
        self._sources.append(source)

    @property
    def backlog(self) -> int:
        """How many messages wait for their ack to be sent or confirmed."""
        waiting = sum([len(source.done) for source in self._sources])
        return waiting + sum([len(command.ids) for command in (*self._decided, *self._sent, *self._refused)])

    def unconfirmed(self, source: Source) -> set[bytes]:
        """Return the ids of `source` whose outcome is decided and not confirmed."""
        commands = (*self._decided, *self._sent, *self._refused)
        return set(source.done).union(*(command.ids for command in commands if command.source is source))

    def unconfirmed_retry(self, source: Source, entry: bytes) -> bytes | None:
        """Return the record of the message's retry that Redis has not confirmed; None: there is none."""
        command = self._retries.get((source, entry))
        return None if command is None else command.record

    def is_recording(self, source: Source, entry: bytes) -> bool:
        """Whether the record of the message's retry is still on its way to Redis, which has not refused it."""
        command = self._retries.get((source, entry))
        return command is not None and command not in self._refused

    def refused(self) -> dict[Source, Exception]:
        """Return the last error of each source of which the server refuses something; it is sent again."""
        commands = (*self._refused, *self._sent, *self._decided)
        return {command.source: command.refusal for command in commands if command.refusal is not None}

    def wake(self) -> None:
        """Send what was decided, including all that is `done`; until it is confirmed, shared memory says so."""
        if self._wakeup.is_set():
            return
        self._wakeup.set()
        if self._idle.is_set():
            self._idle.clear()
            self._shared.add(SlotField.SETTLING, 1)

    def ack_recorded(self, source: Source, *ids: bytes) -> None:
        """Ack messages of which Redis keeps a record; at most 1,000."""
        keys = source.ack_keys
        self.run_script(source, ACK_RETRIED, (len(keys), *keys, source.group, *ids), ids, is_ack=True)

    def retry_later(self, source: Source, entry: bytes, attempts: int, due_ms: int, delay_ms: int) -> None:
        """Record how often this message failed, when it is due (Unix ms) and after how long; it stays pending."""
        record = RetryRecord(attempts, due_ms, delay_ms).encode()
        command = self._call(source, RECORD_RETRY, (2, source.key, source.retries, source.group, entry, record))
        command.retried, command.record = entry, record.encode()
        self._retries[source, entry] = command
        self._decide(command)

    def note_emits(self, source: Source, streams: Sequence[str]) -> None:
        """Record to which streams the group's handler returns `Emit`."""
        now_ms = int(time.time() * 1000)
        self._decide(self._call(source, NOTE_EMITS, (1, source.emits, now_ms, EMITS_STREAMS_MAX, ORIGINS_S, *streams)))

    def forget_keys(self, source: Source, names: Sequence[bytes]) -> None:
        """Forget the keys of settled messages; `names` are those of `broker.turns.Place`."""
        self._decide(_Command(source, ("HDEL", message_keys_key(source.stream, source.group), *names)))

    def unmark(self, source: Source, consumer: str) -> None:
        """Record that this consumer runs no message alone any more."""
        self._decide(_Command(source, ("HDEL", source.isolated, consumer)))

    def charge(self, source: Source, entry: bytes) -> None:
        """Count a crash against the message, whose retry is recorded; at most once, even if the answer is lost."""
        self._decide(_Command(source, ("HINCRBY", source.crashes, entry, 1), once=True))

    def dead_letter(self, source: Source, entry: bytes, letter: Sequence[Argument]) -> None:
        """Write the message's dead letter and ack it, in one script."""
        keys = source.dead_letter_keys
        self.run_script(source, DEAD_LETTER, (len(keys), *keys, source.group, entry, *letter), (entry,))

    def run_script(
        self,
        source: Source,
        script: Script,
        arguments: Sequence[Argument],
        ids: tuple[bytes, ...],
        *,
        is_ack: bool = False,
        answered: Callable[[Any, bool], None] | None = None,
    ) -> None:
        """Run a script that settles these messages; `answered` gets its reply, and whether it was sent repeatedly.

        With `is_ack`, its reply is the number of messages that were still pending, or begins with it.
        """
        for entry in ids:
            self._retries.pop((source, entry), None)
        command = self._call(source, script, arguments)
        command.ids, command.is_ack, command.answered = ids, is_ack, answered
        self._decide(command)

    async def flush(self) -> None:
        """Wait until everything decided so far is confirmed, except what the server refuses: that stays pending."""
        self.wake()
        await self._idle.wait()

    async def run(self) -> None:
        """Send until cancelled. Cancel it after `flush`."""
        failures = 0
        while True:
            await self._wakeup.wait()
            self._take()
            self._wakeup.clear()
            while self._sent:
                failures = 0 if await self._send() else failures + 1
                if failures:
                    await asyncio.sleep(backoff_s(failures, _RETRY_BASE_S, _RETRY_MAX_S, random.random))
                    self._take()
            if not self._wakeup.is_set():
                self._idle.set()
                self._shared.add(SlotField.SETTLING, -1)

    def _take(self) -> None:
        """Move what was decided since the last cycle to what is to be sent, without what was decided again since."""
        acks = []
        for source in self._sources:
            if source.done:
                ids, source.done = source.done, []
                self._shared.add(SlotField.DONE, len(ids))
                source.figures.add(FigureField.SETTLED_DONE, len(ids))
                self._shared.add(SlotField.BATCHES, 1)
                if source.settle is not None:
                    source.settle(ids)
                    continue
                for at in range(0, len(ids), _IDS_MAX):
                    part = tuple(ids[at : at + _IDS_MAX])
                    acks.append(_Command(source, ("XACK", source.key, source.group, *part), part, is_ack=True))
        self._sent = [command for command in (*self._sent, *self._decided) if not self._is_superseded(command)]
        self._sent += acks
        self._decided = []

    async def _send(self) -> bool:
        """Send what fits into one pipeline; False when some of it must be sent again."""
        packed: list[bytes] = []
        size = 0
        for command in self._sent:
            packed.append(pack_command(command.arguments))
            size += len(packed[-1])
            if size >= _PIPELINE_BYTES_MAX:
                break
        sent, began_ns = self._sent[: len(packed)], monotonic_ns()
        try:
            replies = await self._connection.pipeline(packed)
        except REDIS_FAULTS as error:
            self._faults.redis(_EVENT, error)
            for command in sent:
                command.repeated = True
            self._sent[: len(sent)] = [command for command in sent if not command.once]
            return False
        again = self._judge(sent, replies)
        self._sent[: len(sent)] = again
        now_ns = monotonic_ns()
        self._shared.set(SlotField.SETTLE_NS, now_ns)
        self._shared.observe(SlotField.SETTLE_US, REDIS_BOUNDS_S, (now_ns - began_ns) / 1e9)
        self._control.notify()
        if not self._sent and not self._refused:
            self._faults.resolved(_EVENT)
        return not again

    def _judge(self, sent: list[_Command], replies: list[Any]) -> list[_Command]:
        """Return what must be sent again with the next cycle; put off what the server refuses."""
        again = []
        for command, reply in zip(sent, replies, strict=True):
            if not isinstance(reply, Exception):
                self._confirm(command, reply)
                continue
            if isinstance(reply, NoScriptError) and command.script is not None:
                command.arguments = ("EVAL", command.script.text, *command.arguments[2:])
                again.append(command)
                continue
            self._faults.redis(_EVENT, reply)
            command.refusal = reply
            if isinstance(reply, ResponseError) and is_transient(reply):
                again.append(command)
            else:
                self._put_off(command)
        return again

    def _is_superseded(self, command: _Command) -> bool:
        """Whether a newer record of the same message's retry was decided, which may be written already."""
        return bool(command.retried) and self._retries.get((command.source, command.retried)) is not command

    def _confirm(self, command: _Command, reply: Any) -> None:
        if command.retried and not self._is_superseded(command):
            del self._retries[command.source, command.retried]
        if command.ids and command.refusals:
            self._shared.add(SlotField.REFUSED, -1)
        if command.is_ack and not command.repeated:
            lost = len(command.ids) - (reply[0] if isinstance(reply, list) else reply)
            if lost > 0:
                self._shared.add(SlotField.LOST_CLAIM, lost)
                command.source.figures.add(FigureField.SETTLED_LOST_CLAIM, lost)
        if command.answered is not None:
            command.answered(reply, command.repeated)

    def _put_off(self, command: _Command) -> None:
        if command.ids and not command.refusals:
            self._shared.add(SlotField.REFUSED, 1)
        command.refusals += 1
        self._refused.add(command)
        delay_s = backoff_s(command.refusals, _RETRY_BASE_S, _REFUSED_MAX_S, random.random)
        self._loop.call_later(delay_s, self._try_again, command)

    def _try_again(self, command: _Command) -> None:
        self._refused.discard(command)
        self._decide(command)

    def _call(self, source: Source, script: Script, arguments: Sequence[Argument]) -> _Command:
        """Return the call of a script; its text is sent the first time."""
        called = ("EVALSHA", script.sha) if script.sha in self._known else ("EVAL", script.text)
        self._known.add(script.sha)
        return _Command(source, (*called, *arguments), script=script)

    def _decide(self, command: _Command) -> None:
        self._decided.append(command)
        self.wake()
