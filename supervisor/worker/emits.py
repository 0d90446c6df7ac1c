"""Publishes what a handler returned as `Emit` together with the ack; other messages that are done go to the settler.

On one server, and for streams of the same slot in a cluster, the settler's script publishes and acks. A stream in
another slot is published to first, under a key that names the message, or all messages of the batch: the same messages
publish it once, however often their handler runs. The messages are acked after that. A handler with turns publishes in
the same way on one server, since its settler acks with a script of its own, which passes the turn on.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from time import monotonic
from typing import TYPE_CHECKING

from redis.crc import key_slot

from supervisor.broker.scripts import EMIT
from supervisor.context import context
from supervisor.core.backoff import backoff_s
from supervisor.core.emit import emits_in
from supervisor.core.origin import EMITS_STREAMS_MAX, ids_text
from supervisor.errors import IdempotencyError, PublishError
from supervisor.keys import origins_key
from supervisor.publisher import KEY_BYTES_MAX, traced
from supervisor.settings.redis_url import is_cluster
from supervisor.shared_figures import FigureField
from supervisor.shared_state import SlotField
from supervisor.worker.runner import current_runner
from supervisor.worker.settler import Settler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.broker.command_connection import Argument
    from supervisor.core.emit import Emit
    from supervisor.messages import Message
    from supervisor.shared_figures import HandlerFigures
    from supervisor.worker.resources import Resources
    from supervisor.worker.runner import Entry, Runner
    from supervisor.worker.source import Source

_RETRY_BASE_S = 0.1
_RETRY_MAX_S = 5.0
#: Between two notes that a handler publishes to a stream.
_NOTE_S = 60.0
#: Refusals that waiting does not mend: they are a failure of the handler, which names the stream.
_LASTING = frozenset({"ERR", "WRONGTYPE", "NOPERM", "NOAUTH"})


class Emits:
    """What the calls of one handler have returned, until its messages are settled."""

    def __init__(self, resources: Resources, figures: HandlerFigures) -> None:
        self._settler = resources.settler
        self._shared = resources.shared
        self._figures = figures
        self._consumer = resources.consumer
        #: None for a handler with turns, which are passed on by a script of their own.
        self._scripts = resources.settler if isinstance(resources.settler, Settler) else None
        #: When it was noted that the handler publishes to a stream.
        self._noted_s: dict[str, float] = {}
        self._publishes_first = self._scripts is None or is_cluster(resources.redis_url)

    async def take(self, result: object) -> None:
        """Keep what a call of the handler has returned, to be published when its messages are settled.

        Raises UsageError for a list with other things, and PublishError for a stream of another slot that refuses it.
        """
        emits = emits_in(result)
        if not emits:
            return
        runner = current_runner()
        self._note(runner.messages[0].origin, emits)  # type: ignore[arg-type]
        if self._publishes_first:
            emits = await self._publish_elsewhere(runner.messages, emits)
        for message in runner.messages:
            message.recorded = True  # settled by a script, which also publishes
        runner.emits += [(emit.stream, traced(emit.stream, emit.fields)) for emit in emits]

    def done(self, runner: Runner, messages: Sequence[Message]) -> None:
        """Have these messages of the runner acked, and what their handler returned published."""
        if runner.emits:
            emits, runner.emits = runner.emits, []
            self._emit(messages, emits)
            return
        for message in messages:
            if message.recorded:
                self._settler.ack_recorded(message.origin, message.entry)  # type: ignore[arg-type]
                self._shared.add(SlotField.DONE, 1)
                self._figures.add(FigureField.SETTLED_DONE)
            else:
                message.origin.done.append(message.entry)  # type: ignore[attr-defined]

    def _emit(self, messages: Sequence[Message], emits: Sequence[Entry]) -> None:
        by_source: dict[Source, list[Message]] = {}
        for message in messages:
            by_source.setdefault(message.origin, []).append(message)  # type: ignore[arg-type]
        for source, own in by_source.items():  # two when a batch has replayed messages: the first one publishes
            self._run_script(source, own, ids_text([message.id for message in messages]), emits)
            emits = ()
        self._shared.add(SlotField.DONE, len(messages))
        self._figures.add(FigureField.SETTLED_DONE, len(messages))

    def _run_script(self, source: Source, messages: Sequence[Message], by: str, emits: Sequence[Entry]) -> None:
        """Have the script publish, and ack the messages that this consumer still has; `by` is what is noted of them."""
        ids = tuple(message.entry for message in messages)
        keys = [source.key, source.retries, source.crashes]
        number_of: dict[str, int] = {}
        more: list[Argument] = []
        for stream, fields in emits:
            if stream not in number_of:
                number_of[stream] = len(keys) + 1
                keys += stream, origins_key(stream)
            more += number_of[stream], 2 * len(fields)
            for pair in fields.items():
                more += pair

        arguments: list[Argument] = [len(keys), *keys, source.group, self._consumer, int(source.replays), len(ids)]
        assert self._scripts is not None
        self._scripts.run_script(source, EMIT, [*arguments, *ids, source.stream, by, *more], ids, is_ack=True)

    def _note(self, source: Source, emits: Sequence[Emit]) -> None:
        """Have it noted to which streams the handler publishes, for `explain`."""
        now_s = monotonic()
        streams = {emit.stream for emit in emits if now_s - self._noted_s.get(emit.stream, -_NOTE_S) >= _NOTE_S}
        if streams:
            if len(self._noted_s) >= EMITS_STREAMS_MAX:
                self._noted_s.clear()
            self._noted_s.update(dict.fromkeys(streams, now_s))
            self._settler.note_emits(source, sorted(streams))

    async def _publish_elsewhere(self, messages: Sequence[Message], emits: Sequence[Emit]) -> list[Emit]:
        """Publish what the script can't; return the rest."""
        message = messages[0]
        own = key_slot(message.stream.encode())
        by = message.stream, message.group, ids_text([one.id for one in messages])
        here = []
        for number, emit in enumerate(emits):
            if self._scripts is not None and key_slot(emit.stream.encode()) == own:
                here.append(emit)
            else:
                await self._publish(emit, _key(messages, number), by)
        return here

    async def _publish(self, emit: Emit, key: str, by: tuple[str, str, str]) -> None:
        """Publish under `key`, waiting while Redis is away: the handler's time limit ends it."""
        failures = 0
        while True:
            try:
                await context().publisher.publish_batch(emit.stream, [emit.fields], key=key, emitted_by=by)
                return
            except IdempotencyError:  # an earlier attempt with the same messages has published it, with other fields
                return
            except PublishError as error:
                if error.code in _LASTING:
                    raise
            failures += 1
            await asyncio.sleep(backoff_s(failures, _RETRY_BASE_S, _RETRY_MAX_S, random.random))


def _key(messages: Sequence[Message], number: int) -> str:
    """Return what stands for one `Emit` of a message, or of a batch; a digest where the names are too long for a key.

    Of a batch, it stands for all messages: when the first one is handled again with others, the result is another one.
    """
    first = messages[0]
    ids = first.id if len(messages) == 1 else _digest(" ".join(one.id for one in messages).encode())
    data = f"{first.stream}/{first.group}/{ids}/{number}".encode(errors="surrogatepass")
    return data.decode(errors="surrogatepass") if len(data) <= KEY_BYTES_MAX else _digest(data)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()
