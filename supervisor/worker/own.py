"""A consumer's own pending list: reading it, charging a crash, handing it over.

The list is read when nothing else is on the reader's wire, so an entry can't be met both here and in
the reply of a read for new ones.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis.exceptions import OutOfMemoryError, ResponseError

from supervisor.broker.scripts import DELETE_CONSUMER, TAKE_OVER
from supervisor.core.blame import after_crash, marked
from supervisor.core.records import parse_number
from supervisor.errors import SupervisorError
from supervisor.keys import REPLAY_CONSUMER
from supervisor.shared_state import SharedConsumer, SlotField
from supervisor.worker.adopt import Adopted, sort_out
from supervisor.worker.delivery import Copy, Delivery
from supervisor.worker.pages import PAGE, Pages

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from supervisor.broker.wire import BlockingReader, Wire
    from supervisor.handling.load import HandlerSpec
    from supervisor.worker.mark import Mark
    from supervisor.worker.outcomes import Outcomes
    from supervisor.worker.settler import Keys
    from supervisor.worker.surroundings import Surroundings

_TAKEN_AT_ONCE = 200


class CopiesGoneError(SupervisorError):
    """The stream of copies is no more: somebody else has settled the last one."""


async def hand_over(wire: Wire, keys: Keys, consumer: str, heir: str) -> None:
    """Give all that `consumer` holds of one (stream, group) to the consumer `heir`, and delete it."""
    stream, group = keys.stream, keys.group
    start = "-"
    while pending := await wire.call("XPENDING", stream, group, start, "+", PAGE, consumer):
        ids = [entry[0] for entry in pending]
        # JUSTID: a change of hands is no delivery.
        await wire.call("XCLAIM", stream, group, heir, 0, *ids, "JUSTID")
        start = "(" + ids[-1].decode()
    await wire.script(DELETE_CONSUMER, [stream], group, consumer)


class OwnList:
    """What Redis holds pending for one consumer."""

    def __init__(self, spec: HandlerSpec, keys: Keys, around: Surroundings, row: SharedConsumer, mark: Mark):
        self._spec = spec
        self._keys = keys
        self._wire = around.wire
        self._settler = around.settler
        self._shared = around.shared
        self._faults = around.faults
        self._crash = around.crash
        self._consumer = around.name
        self._takes_replayed = around.burst and not keys.copies
        self._row = row
        self._mark = mark
        self._make = Copy if keys.copies else Delivery
        self._pages = Pages()
        #: The mark of the predecessor was found and taken away, so its crash is counted.
        self._charged = False
        #: Read at least once: what a predecessor left is known, and no crash is charged any more.
        self.opened = False

    async def make_group(self) -> None:
        """Create the group where it is missing. Raises CopiesGoneError where a stream of copies is no more."""
        if self._keys.copies:
            await self._make_group_of_copies()
            return
        # A group that was there and is gone starts at 0, or what arrived meanwhile would be skipped.
        start = "0" if self.opened else self._spec.options.start
        try:
            await self._wire.call("XGROUP", "CREATE", self._keys.stream, self._keys.group, start, "MKSTREAM")
        except OutOfMemoryError:
            return  # refused also where the group is there, which can still be read: that frees memory in the end
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        else:
            if self.opened:
                self._tell_lost_group()

    def _tell_lost_group(self) -> None:
        self._faults(
            "group was gone",
            SupervisorError("it was deleted, or the server lost its data; the stream is read from its start again"),
            level="error",
            key=f"{self._keys.stream} {self._keys.group}",
            stream=self._keys.stream,
            group=self._keys.group,
        )

    async def sweep(self, reader: BlockingReader, known: AbstractSet[bytes], outcomes: Outcomes) -> Adopted:
        """All that is pending but `known`, sorted by what is to be done with it."""
        if self._takes_replayed:
            await self._take_replayed()
        found = await self._read_all(reader, known, outcomes)
        if not self.opened:
            await self._charge_marked(found, outcomes)
        started = (0, 0) if self.opened else self._row.started()
        often = await self._delivered_often(found) if not self.opened and self._mark.shared_is_new else frozenset()
        self._shared.add(SlotField.ADOPTED, len(found))
        records = await self._records(self._keys.retries, found)
        crashes = await self._records(self._keys.crashes, found)
        found, records = self._without_dead(found, records, crashes, outcomes)
        self.opened = True
        adopted = sort_out(found, records, started, int(time.time() * 1000), often)
        adopted.charged, adopted.crashed = self._charged, started != (0, 0)
        return adopted

    def _without_dead(
        self,
        found: list[Delivery],
        records: list[bytes | None],
        crashes: list[bytes | None],
        outcomes: Outcomes,
    ) -> tuple[list[Delivery], list[bytes | None]]:
        """Bury again those whose letter was lost with the process that was to write it."""
        kept: list[Delivery] = []
        kept_records: list[bytes | None] = []
        for delivery, record, count in zip(found, records, crashes, strict=True):
            delivery.recorded |= count is not None
            if not self._bury_if_dead(delivery, parse_number(count) or 0, outcomes):
                kept.append(delivery)
                kept_records.append(record)
        return kept, kept_records

    async def charge(self, delivery: Delivery, outcomes: Outcomes) -> bool:
        """Count a crash against the message; True when it was one too many and it became a dead letter."""
        crashes = int(await self._wire.call("HINCRBY", self._keys.crashes, delivery.id, 1))
        delivery.recorded = True
        return self._bury_if_dead(delivery, crashes, outcomes)

    def _bury_if_dead(self, delivery: Delivery, crashes: int, outcomes: Outcomes) -> bool:
        dead = after_crash(crashes, self._spec.options)
        if dead is not None:
            outcomes.bury(delivery, dead, None, self._crash)
        return dead is not None

    async def hand_over(self, heir: str) -> None:
        """Give all of it to the consumer `heir`, and delete this one."""
        await hand_over(self._wire, self._keys, self._consumer, heir)

    async def _make_group_of_copies(self) -> None:
        """Its stream is never made here: it is there as long as there are copies."""
        try:
            await self._wire.call("XGROUP", "CREATE", self._keys.stream, self._keys.group, "0")
        except OutOfMemoryError:
            return  # as above; where it is not there, the first read tells
        except ResponseError as error:
            if "key to exist" in str(error):
                raise CopiesGoneError from None
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _take_replayed(self) -> None:
        """A burst may be over before a keeper has given anybody what was put back by hand."""
        words = (self._keys.group, REPLAY_CONSUMER, self._consumer, _TAKEN_AT_ONCE, 0, 0)
        found = 1
        while found:
            found, _ = await self._wire.script(TAKE_OVER, [self._keys.stream], *words)

    async def _read_all(self, reader: BlockingReader, known: AbstractSet[bytes], outcomes: Outcomes) -> list[Delivery]:
        await self._bury_unreadable(outcomes)
        found: list[Delivery] = []
        async for page in self._pages.read(reader):
            new = [entry for entry in page if entry[0] not in known]
            gone = [entry[0] for entry in new if entry[1] is None]
            if gone:  # deleted while pending
                self._settler.ack_retried(self._keys, *gone)
                self._shared.add(SlotField.TRIMMED, len(gone))
            found += [self._make(entry[0], entry[1]) for entry in new if entry[1] is not None]
        return found

    async def _bury_unreadable(self, outcomes: Outcomes) -> None:
        after = self._pages.unreadable_after
        if after is None:
            return
        stream, group = self._keys.stream, self._keys.group
        start = b"-" if after == b"0" else b"(" + after
        pending = await self._wire.call("XPENDING", stream, group, start, "+", 1, self._consumer)
        if pending:
            await outcomes.bury_unread(self._keys, pending[0][0], self._wire)
        self._pages.forget()

    async def _records(self, key: str, found: list[Delivery]) -> list[bytes | None]:
        """What the hash at `key` has of each, in the same order."""
        ids = [delivery.id for delivery in found]
        records: list[bytes | None] = []
        for at in range(0, len(ids), PAGE):
            records += await self._wire.call("HMGET", key, *ids[at : at + PAGE])
        return records

    async def _charge_marked(self, found: list[Delivery], outcomes: Outcomes) -> None:
        """Charge the message that was marked as running alone at the crash, if there is one."""
        by_id = {delivery.id: delivery for delivery in found}
        alone = await self._mark.find()
        entry = marked(by_id, alone)
        if alone is not None or not self._mark.shared_is_new:  # what Redis has may be older than shared memory
            await self._mark.take()
        if entry is None:
            return
        self._charged = True  # also when the answer is lost and all of this is done again: never twice for one crash
        if await self.charge(by_id[entry], outcomes):
            found.remove(by_id[entry])

    async def _delivered_often(self, found: list[Delivery]) -> frozenset[bytes]:
        """Those that a whole row of pools has adopted and none has settled: perhaps they were what ended each."""
        often: set[bytes] = set()
        start = b"-"
        while found and start:
            page = await self._wire.call(
                "XPENDING", self._keys.stream, self._keys.group, start, "+", PAGE, self._consumer
            )
            often |= {entry for entry, _, _, deliveries in page if deliveries >= self._spec.options.max_crashes}
            start = b"(" + page[-1][0] if page else b""
        return frozenset(often)
