"""Sends everything that one turn of the event loop asks for as one pipeline, and gives each caller its own result.

1. One pipeline is on the wire at a time; what arrives in the meantime goes out with the next, so the order is kept.
2. Bounded in commands, in bytes and in time: a job is answered by its deadline, whatever Redis does.
3. A job whose answer was lost is sent again only when it allows that, and only once.
4. An idle connection is tested before it is used: if a load balancer has forgotten it, it swallows everything
   without an error. A job that may be sent twice is sent over a second connection when the first has been silent for
   half of the time limit.

It knows nothing of streams.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from supervisor.broker.command_connection import pack_command
from supervisor.broker.connect import connection
from supervisor.broker.redis_errors import REDIS_FAULTS, UNREACHABLE, code_of
from supervisor.broker.routed_connection import reopen, send_packed
from supervisor.broker.routes import Address
from supervisor.broker.scripts import Script
from supervisor.errors import PublishError, PublishRefusedError, PublishUnknownError, UsageError

#: Commands in one pipeline; a single job may have more.
COMMANDS_MAX = 500
QUEUED_JOBS_MAX = 10_000
QUEUED_BYTES_MAX = 64 * 1024 * 1024
#: A pipeline is at most about this long, so that one answer does not wait for megabytes.
PIPELINE_BYTES_MAX = 4 * 1024 * 1024
FULL = "FULL"
#: A connection that was idle for longer is tested before it is used.
QUIET_S = 1.0
#: The share of the time limit that this test may take.
_PROBE_SHARE = 0.25
#: The share of the time limit after which a silent connection may be dead.
_DOUBT_SHARE = 0.5


class PipelineConnection:
    """A connection that sends whole pipelines and yields their replies in order; used by one task at a time.

    `open` fails before a byte of the pipeline is written, so a caller can tell what was never sent from what may have
    been. A connection that the server closed while it was idle is made again.
    """

    def __init__(self, source: str | Redis, *, connect_timeout_s: float, at: Address | None = None) -> None:
        """`source`: a URL, or a client whose server and credentials are used; its own connections are not.

        `at`: the node, where the URL names a cluster.
        """
        self._source = source
        self._connect_timeout_s = connect_timeout_s
        self._at = at
        self._connection = (
            connection(source, at=at, connect_timeout_s=connect_timeout_s, name="supervisor-publisher")
            if isinstance(source, str)
            else _connection_like(source)
        )
        self._demoted = False
        #: When the last reply came, by `time.monotonic`.
        self._answered_s = time.monotonic()

    def twin(self) -> Self:
        """Return another connection to the same server, not yet connected."""
        return type(self)(self._source, connect_timeout_s=self._connect_timeout_s, at=self._at)

    async def open(self, probe_s: float) -> None:
        """Connect unless connected. An idle connection that does not answer within `probe_s` is replaced.

        Raises redis-py's errors and OSError; nothing was sent then.
        """
        await reopen(self._connection, demoted=self._demoted)
        self._demoted = False
        if time.monotonic() - self._answered_s > QUIET_S and not await self._works(probe_s):
            await self.drop()
            await reopen(self._connection)
        self._answered_s = time.monotonic()

    async def _works(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                await send_packed(self._connection, [pack_command(("PING",))])
                with contextlib.suppress(ResponseError):
                    await self._connection.read_response(disable_decoding=True, timeout=math.inf)
        except REDIS_FAULTS:
            return False
        return True

    async def replies(self, packed: Sequence[bytes]) -> AsyncIterator[Any]:
        """Send packed commands and yield their replies in order, errors of the server as exceptions.

        Raises redis-py's errors and OSError when the connection fails; what became of the rest is then unknown.
        """
        await send_packed(self._connection, packed)
        for _ in packed:
            try:
                yield await self._connection.read_response(disable_decoding=True, timeout=math.inf)
            except ResponseError as error:
                self._demoted |= isinstance(error, ReadOnlyError)
                yield error
        self._answered_s = time.monotonic()

    async def drop(self) -> None:
        """Close the connection; replies that are still to come are lost."""
        await self._connection.disconnect(nowait=True)


def _connection_like(client: Redis) -> AbstractConnection:
    pool = getattr(client, "connection_pool", None)
    if pool is None or not hasattr(pool, "make_connection"):
        raise UsageError(
            f"a publisher needs a URL or a redis.asyncio.Redis, not {type(client).__name__};"
            " a cluster's URL is redis+cluster://host:6379"
        )
    made: AbstractConnection = pool.make_connection()
    made.retry = Retry(NoBackoff(), 0)
    # redis-py wraps each send in a Task when there is a timeout; the publisher has its own.
    made.socket_timeout = None
    return made


@dataclass(slots=True, eq=False)
class Job:
    """Commands that belong together, and the caller that waits for them."""

    commands: list[bytes]
    size: int
    #: Resolves to the reply of the last command.
    done: asyncio.Future[Any]
    #: By the loop's clock.
    deadline_s: float
    #: The same with the script's text, for a server that does not know the script.
    with_text: bytes | None = None
    #: Sending it twice does no harm.
    repeatable: bool = False
    #: On the wire, or sent and its answer lost.
    sent: bool = False
    #: Sent once without an answer.
    lost: bool = False


class PublishPipeline:
    """Queues jobs for one connection; belongs to one event loop."""

    def __init__(self, connection: PipelineConnection, *, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._queue: deque[Job] = deque()
        self._queued_bytes = 0
        self._sending: list[Job] = []
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._elsewhere: asyncio.Task[None] | None = None

    async def command(self, *arguments: str | bytes | int) -> Any:
        """Return the reply of one command. Raises PublishRefusedError or PublishUnknownError."""
        return await self._submit([pack_command(arguments)])

    async def transaction(self, commands: Sequence[Sequence[str | bytes | int]]) -> Any:
        """Run all of the commands or none; return their replies. Raises as `command` does."""
        return await self._submit([pack_command(tuple(c)) for c in (("MULTI",), *commands, ("EXEC",))])

    async def script(
        self, script: Script, keys: Sequence[str], *arguments: str | bytes | int, repeatable: bool = False
    ) -> Any:
        """Return a script's reply; only a server that does not know it gets its text. Raises as `command` does."""
        tail = (len(keys), *keys, *arguments)
        text = pack_command(("EVAL", script.text, *tail))
        return await self._submit([pack_command(("EVALSHA", script.sha, *tail))], text, repeatable=repeatable)

    async def close(self) -> None:
        """Wait for the jobs under way, each of which has its deadline, then disconnect."""
        for task in (self._task, self._elsewhere):
            if task is not None:
                await asyncio.wait([task])
        if self._timer is not None:
            self._timer.cancel()
        await self._connection.drop()

    async def _submit(self, commands: list[bytes], with_text: bytes | None = None, *, repeatable: bool = False) -> Any:
        size = sum(map(len, commands))
        if len(self._queue) >= QUEUED_JOBS_MAX or self._queued_bytes + size > QUEUED_BYTES_MAX:
            raise PublishRefusedError(f"{len(self._queue)} publishes wait for Redis already", FULL)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._timeout_s
        job = Job(commands, size, loop.create_future(), deadline_s, with_text, repeatable)
        self._queue.append(job)
        self._queued_bytes += size
        if self._task is None:
            # It runs in the loop's next turn, so the first pipeline has everything that this turn publishes.
            self._task = loop.create_task(self._send_all())
        if self._timer is None:
            self._timer = loop.call_at(deadline_s, self._expire)
        return await job.done

    async def _send_all(self) -> None:
        try:
            while batch := self._take():
                self._sending = batch
                try:
                    await self._send(batch)
                except Exception as error:
                    # A bug must not leave callers waiting without an answer.
                    self._fail(batch, error)
                    await self._connection.drop()
                self._sending = []
        finally:
            self._task = None

    def _take(self) -> list[Job]:
        batch: list[Job] = []
        commands = size = 0
        while self._queue and commands < COMMANDS_MAX and size < PIPELINE_BYTES_MAX:
            job = self._queue[0]
            if batch and commands + len(job.commands) > COMMANDS_MAX:
                break
            self._queue.popleft()
            self._queued_bytes -= job.size
            if not job.done.done():  # it has expired, or its caller was cancelled
                batch.append(job)
                commands += len(job.commands)
                size += job.size
        return batch

    async def _send(self, batch: list[Job]) -> None:
        doubt = None
        try:
            async with asyncio.timeout_at(batch[-1].deadline_s):
                await self._connection.open(self._timeout_s * _PROBE_SHARE)
                for job in batch:
                    job.sent = True
                if any(job.repeatable and not job.lost for job in batch):
                    doubt = asyncio.get_running_loop().call_later(
                        self._timeout_s * _DOUBT_SHARE, self._send_elsewhere_soon, batch
                    )
                await self._receive(batch, self._connection)
        except REDIS_FAULTS as error:
            await self._connection.drop()
            again = [job for job in batch if job.sent and job.repeatable and not job.lost and not job.done.done()]
            for job in again:
                job.lost = True
            self._fail([job for job in batch if job not in again], error)
            self._requeue(again)
        finally:
            if doubt is not None:
                doubt.cancel()

    def _send_elsewhere_soon(self, batch: list[Job]) -> None:
        self._elsewhere = asyncio.create_task(self._send_elsewhere(batch))

    async def _send_elsewhere(self, batch: list[Job]) -> None:
        """Send the jobs that allow it over a second connection. If that answers, the first is dead and is dropped."""
        jobs = [job for job in batch if job.repeatable and not job.lost and not job.done.done()]
        if not jobs:
            return
        second = self._connection.twin()
        try:
            async with asyncio.timeout_at(jobs[-1].deadline_s):
                await second.open(self._timeout_s)
                for job in jobs:
                    job.lost = True
                    if job.with_text is not None:  # the first connection may still use the other form
                        job.commands, job.with_text = [job.with_text], None
                await self._receive(jobs, second)
            await self._connection.drop()
        except REDIS_FAULTS:  # the server is silent: the jobs are answered at their deadline
            pass
        finally:
            await second.drop()

    async def _receive(self, batch: list[Job], connection: PipelineConnection) -> None:
        replies = connection.replies([command for job in batch for command in job.commands])
        unknown_script: list[Job] = []
        for job in batch:
            got = [await anext(replies) for _ in job.commands]
            error = next((reply for reply in got if isinstance(reply, Exception)), None)
            if error is None and isinstance(got[-1], list):
                error = next((item for item in got[-1] if isinstance(item, Exception)), None)
            if job.done.done():
                continue
            if isinstance(error, NoScriptError) and job.with_text is not None:
                job.commands, job.with_text, job.sent = [job.with_text], None, job.lost
                unknown_script.append(job)
            elif error is not None:
                failure = PublishRefusedError(f"Redis refused: {error}", code_of(error))
                failure.__cause__ = error
                job.done.set_exception(failure)
            else:
                job.done.set_result(got[-1])
        self._requeue(unknown_script)

    def _requeue(self, jobs: list[Job]) -> None:
        self._queue.extendleft(reversed(jobs))
        self._queued_bytes += sum(job.size for job in jobs)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        for job in jobs:
            if not job.done.done():
                failure = _failure(job, f"{type(error).__name__}: {error}".rstrip(": "), code_of(error))
                failure.__cause__ = error
                job.done.set_exception(failure)

    def _expire(self) -> None:
        """Fail the jobs whose deadline has passed; deadlines are in the order of arrival."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for job in (*self._sending, *self._queue):
            if job.done.done():
                continue
            if job.deadline_s > loop.time():
                self._timer = loop.call_at(job.deadline_s, self._expire)
                return
            job.done.set_exception(_failure(job, f"no answer within {self._timeout_s:g} s", UNREACHABLE))


def _failure(job: Job, reason: str, code: str) -> PublishError:
    if job.sent or job.lost:
        return PublishUnknownError(f"Redis may or may not have stored it: {reason}", code)
    return PublishRefusedError(f"Redis can't be reached: {reason}", code)
