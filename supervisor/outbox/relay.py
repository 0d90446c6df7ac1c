"""The relay: the service that publishes the rows of a database's outbox, in the order of commit, once.

1. One relay at a time publishes: it holds a lease in the database. The others stand by.
2. A cycle deletes what the last one has published and reads the next rows, in one transaction. Then it publishes them,
   with one script for each stream, which remembers the key of each row: a row whose deletion was lost is not stored
   twice.
3. A key is forgotten some time after its row was deleted, when no relay can have it in hand any more.
4. When the pool stops, the relay publishes what the workers have left in the outbox, then it exits.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import deque
from typing import TYPE_CHECKING

import uvloop

from supervisor.broker.redis_errors import UNREACHABLE
from supervisor.broker.scripts import RELAY
from supervisor.core.backoff import backoff_s
from supervisor.core.relay_state import RelayState
from supervisor.errors import EXIT_OK, PublishError
from supervisor.keys import origins_key, relayed_key
from supervisor.log import FaultLog, outage_turn, service_logger
from supervisor.outbox.database import (
    DATABASE_FAULTS,
    LEASE_S,
    ROWS_MAX,
    Database,
    count_waiting,
    delete_rows,
    drop_lease,
    next_rows,
    take_lease,
)
from supervisor.outbox.rows import check_row, row_fields
from supervisor.publisher import Publisher
from supervisor.settings.paths import redis_url
from supervisor.shared_state import HeaderField, SharedState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from supervisor.outbox.database import OutboxBacklog, Row
    from supervisor.settings.model import Settings

#: Pauses: when the outbox was empty, and while another relay publishes.
POLL_S = 0.1
STANDBY_S = 1.0
COUNT_S = 2.0
_RETRY_BASE_S = 0.2
_RETRY_MAX_S = 5.0
#: How long a stream that refuses a row is left alone.
_REFUSED_MAX_S = 30.0
#: After this time without a renewal of the lease nothing is sent: another relay may publish soon.
_FRESH_S = LEASE_S / 2
#: How long a key is kept after its row was deleted, and at most (a week) when it was not.
_FORGET_S = 60.0
_KEPT_MS = 7 * 24 * 3600 * 1000
_SCRIPT_BYTES_MAX = 4 * 1024 * 1024
#: Rows that are left out of the query by their ids: SQLite takes 32,766 parameters.
_UNREADABLE_MAX = 20_000
_CANT_READ = "can't read the outbox"
_CANT_PUBLISH = "can't publish from the outbox"


def run(settings: Settings, shared: SharedState, token: str) -> int:
    """Publish until SIGTERM or SIGINT, then what is there at that moment; return the exit code."""
    return uvloop.run(_main(settings, shared, token))


async def _main(settings: Settings, shared: SharedState, token: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    relay = Relay(settings, shared, token)
    parent = os.getppid()
    while not stop.is_set() and os.getppid() == parent:
        pause_s = await relay.run_cycle()
        try:
            async with asyncio.timeout(pause_s):
                await stop.wait()
        except TimeoutError:
            continue
    if stop.is_set():
        await relay.finish()
    await relay.close()
    return EXIT_OK


class Relay:
    """Publishes the outbox, cycle by cycle."""

    def __init__(self, settings: Settings, shared: SharedState, token: str) -> None:
        self._database = Database(settings.outbox.url)
        self._publisher = Publisher(redis_url(settings), connect_timeout_s=settings.redis.connect_timeout_s)
        self._shared = shared
        self._token = token
        self._log = service_logger(settings, "relay")
        self._database_faults = FaultLog(self._log)
        self._faults = FaultLog(self._log, outage_turn(shared))
        self._failures = 0
        #: Rows that are published and not deleted.
        self._published: list[Row] = []
        #: There may be rows behind those that were read.
        self._more = False
        #: Streams that refuse a row: until when, and how often they have.
        self._refusing: dict[str, tuple[float, int]] = {}
        #: Rows that are not in the form of `row_text`.
        self._unreadable: set[int] = set()
        #: Per stream: (when the row was deleted, its key).
        self._forgettable: dict[str, deque[tuple[float, str]]] = {}
        self._counted_s = 0.0

    async def run_cycle(self) -> float:
        """Do one cycle; return how long to wait before the next one."""
        began_s = time.monotonic()
        try:
            rows = await self._database.run(self._cycle)
        except DATABASE_FAULTS as error:
            self._database_faults.redis(_CANT_READ, error)
            return self._failed(RelayState.NO_DATABASE)
        self._database_faults.resolved(_CANT_READ)
        self._deleted(began_s)
        if rows is None:
            self._note(RelayState.STANDBY)
            return STANDBY_S
        complete = await self._publish(rows, began_s)
        self._more = len(rows) == ROWS_MAX or len(self._published) < len(rows)
        if not complete:
            return self._failed(RelayState.NO_REDIS)
        self._failures = 0
        self._note(RelayState.RELAYING)
        return 0 if self._published else POLL_S

    async def finish(self) -> None:
        """Publish what is in the outbox; stop where nothing can be published, and don't wait for rows to come."""
        while await self.run_cycle() == 0 and self._more:
            pass

    def _cycle(self, connection: Connection) -> list[Row] | None:
        """Delete what is published; return the next rows, or None while another relay publishes."""
        delete_rows(connection, [row.id for row in self._published])
        if not take_lease(connection, self._token):
            return None
        now_s = time.monotonic()
        if now_s - self._counted_s >= COUNT_S:
            self._show(count_waiting(connection))
            self._counted_s = now_s
        off = [stream for stream, (until_s, _) in self._refusing.items() if until_s > now_s]
        return next_rows(connection, off, self._unreadable)

    def _deleted(self, now_s: float) -> None:
        for row in self._published:
            self._forgettable.setdefault(row.stream, deque()).append((now_s, row.key))
        self._published = []

    async def _publish(self, rows: Sequence[Row], leased_s: float) -> bool:
        """Publish rows, each stream's in order; False when Redis is away."""
        if time.monotonic() - leased_s > _FRESH_S:
            return True
        of_streams: dict[str, list[Row]] = {}
        for row in rows:
            try:
                check_row(row.key, row.stream, row.fields)
            except ValueError as error:
                self._give_up(row, error)
            else:
                of_streams.setdefault(row.stream, []).append(row)
        sent = [self._publish_to(stream, own) for stream, own in of_streams.items()]
        return all(await asyncio.gather(*sent))

    async def _publish_to(self, stream: str, rows: Sequence[Row]) -> bool:
        forget = self._due(stream)
        taken, arguments = self._arguments(rows)
        if not taken:
            return True
        values = (_KEPT_MS, len(forget), *forget, *arguments)
        try:
            keys = stream, relayed_key(stream), origins_key(stream)
            stored = await self._publisher.evaluate(RELAY.text, keys, *values, repeatable=True)
        except PublishError as error:
            self._faults.redis(_CANT_PUBLISH, error, stream=stream)
            if error.code == UNREACHABLE:
                return False
            failures = self._refusing.get(stream, (0.0, 0))[1] + 1
            pause_s = backoff_s(failures, _RETRY_BASE_S, _REFUSED_MAX_S, random.random)
            self._refusing[stream] = time.monotonic() + pause_s, failures
            return True
        self._faults.resolved(_CANT_PUBLISH, stream=stream)
        self._refusing.pop(stream, None)
        for _ in forget:
            self._forgettable[stream].popleft()
        self._published += taken
        self._shared.set(HeaderField.RELAYED, self._shared.get(HeaderField.RELAYED) + stored)
        return True

    def _arguments(self, rows: Sequence[Row]) -> tuple[list[Row], list[str | bytes | int]]:
        """Return the rows that fit into one script, and what it takes for them."""
        taken: list[Row] = []
        arguments: list[str | bytes | int] = []
        size = 0
        for row in rows:
            size += len(row.fields)
            if taken and size > _SCRIPT_BYTES_MAX:
                break
            try:
                fields = row_fields(row.fields)
            except ValueError as error:
                self._give_up(row, error)
                continue
            arguments += row.key, 2 * len(fields)
            for pair in fields.items():
                arguments += pair
            taken.append(row)
        return taken, arguments

    def _give_up(self, row: Row, error: Exception) -> None:
        if len(self._unreadable) < _UNREADABLE_MAX:
            self._unreadable.add(row.id)
        key = str(row.stream)
        self._faults("outbox row can't be published", error, level="error", key=key, id=row.id, stream=row.stream)

    def _due(self, stream: str) -> list[str]:
        """Return the keys that may be forgotten."""
        until_s = time.monotonic() - _FORGET_S
        return [key for deleted_s, key in self._forgettable.get(stream, ()) if deleted_s < until_s]

    def _failed(self, state: RelayState) -> float:
        self._failures += 1
        self._note(state)
        return backoff_s(self._failures, _RETRY_BASE_S, _RETRY_MAX_S, random.random)

    def _note(self, state: RelayState) -> None:
        self._shared.set(HeaderField.RELAY_STATE, state)
        self._shared.set(HeaderField.RELAY_BEAT_NS, time.monotonic_ns())

    def _show(self, waiting: OutboxBacklog) -> None:
        self._shared.set(HeaderField.OUTBOX_ROWS, waiting.rows)
        oldest = waiting.oldest
        self._shared.set(HeaderField.OUTBOX_OLDEST_MS, int(oldest.timestamp() * 1000) if oldest else 0)

    async def close(self) -> None:
        """Delete what is published, let another relay go on, and disconnect."""
        try:
            await self._database.run(self._finish)
        except DATABASE_FAULTS as error:
            self._database_faults.redis(_CANT_READ, error)
        await self._publisher.aclose()
        await self._database.close()

    def _finish(self, connection: Connection) -> None:
        delete_rows(connection, [row.id for row in self._published])
        drop_lease(connection, self._token)
