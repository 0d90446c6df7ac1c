"""The streams that a handler's messages come from: its own, and the replay stream of its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.core.ids import parse_id
from supervisor.core.replayed_copy import name_of_copy, original
from supervisor.keys import crashes_key, dead_key, emits_key, isolated_key, replay_key, retries_key
from supervisor.messages import Message
from supervisor.shared_figures import FigureField

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from supervisor.broker.group_reader import Entries
    from supervisor.shared_consumer import SharedConsumer
    from supervisor.shared_figures import HandlerFigures
    from supervisor.shared_state import SharedSlot


class Source:
    """One stream that a handler reads: its keys in Redis, its row in shared memory, and what awaits its ack.

    It is the origin of its messages. A replayed message names the handler's stream and its first id, and is settled
    as the copy in the replay stream that it is.
    """

    __slots__ = (
        "_started", "ack_keys", "crashes", "dead_letter_keys", "done", "emits", "figures", "group", "isolated", "key",
        "key_bytes", "marks", "replays", "retries", "settle", "stream",
    )  # fmt: skip

    def __init__(
        self, stream: str, group: str, marks: SharedConsumer, figures: HandlerFigures, *, replays: bool = False
    ) -> None:
        """Describe the handler's `stream`, or with `replays` the replay stream of its group; `figures` has both."""
        self.stream = stream
        self.group = group
        self.replays = replays
        #: The stream that is read.
        self.key = source_key(stream, group, replays=replays)
        self.key_bytes = self.key.encode()
        self.retries = retries_key(self.key, group)
        self.crashes = crashes_key(self.key, group)
        self.isolated = isolated_key(self.key, group)
        self.emits = emits_key(stream, group)
        #: The keys of the scripts that ack a message, and of those that write its dead letter.
        copies = (self.key,) if replays else ()
        self.ack_keys = (self.key, self.retries, self.crashes, *copies)
        self.dead_letter_keys = (self.key, self.retries, self.crashes, dead_key(stream, group), *copies)
        self.marks = marks
        self.figures = figures
        #: Ids that are handled and not yet with the settler.
        self.done: list[bytes] = []
        #: Settles them in a way of its own; None: they are acked.
        self.settle: Callable[[list[bytes]], None] | None = None
        #: The highest id that was started.
        self._started = (0, 0)

    def note_started(self, entry: bytes) -> None:
        """Note in shared memory that messages up to `entry` are started.

        It is noted once for a batch: at worst, a crash has a few more of them run one at a time.
        """
        started = parse_id(entry)
        self._started = max(self._started, started)
        self.marks.raise_started(*started)

    def note_failing(self) -> None:
        """Note in shared memory that all that was started and is not settled may be what ends this process."""
        self.marks.raise_started(*self._started)

    def new_messages(self, entries: Entries) -> list[Message]:
        """Return the messages of a reply with entries that were not delivered before, and count them."""
        messages = self.messages(entries)
        self.figures.add(FigureField.REDELIVERED if self.replays else FigureField.DELIVERED, len(messages))
        return messages

    def note_waits(self, messages: Sequence[Message], received_s: float) -> None:
        """Note how long new messages had waited in the stream when they were received, in Unix time."""
        if not self.replays:
            self.figures.waited(messages, received_s)

    def messages(self, entries: Entries) -> list[Message]:
        """Return the messages of a reply's entries; none of them may be deleted."""
        if not self.replays:
            return Message.from_reply(self, entries)
        messages = []
        for entry, flat in entries:
            message_id, fields = original(entry, flat)
            (message,) = Message.from_reply(self, [(entry, fields)])
            message.stand_for(message_id.decode())
            message.recorded = True  # settled by a script, which also removes the copy
            messages.append(message)
        return messages

    def name_of(self, message: Message) -> bytes:
        """Return the message's name in rows and among rates: its id; of a copy `<id of the message>@<its own>`."""
        return name_of_copy(message.id, message.entry) if self.replays else message.entry


def by_id(messages: Iterable[Message]) -> list[Message]:
    """Return the messages in the order of their ids."""
    return sorted(messages, key=lambda message: parse_id(message.entry))


def source_key(stream: str, group: str, *, replays: bool) -> str:
    """Return the key of the stream that is read."""
    return replay_key(stream, group) if replays else stream


def sources_of(stream: str, group: str, shared: SharedSlot) -> tuple[Source, Source] | None:
    """Return the two sources of a handler; None when shared memory has no row left for them."""
    made = []
    figures = shared.figures(stream, group)
    for replays in (False, True):
        marks = shared.consumer(source_key(stream, group, replays=replays), group)
        if marks is None or figures is None:
            return None
        made.append(Source(stream, group, marks, figures, replays=replays))
    return made[0], made[1]
