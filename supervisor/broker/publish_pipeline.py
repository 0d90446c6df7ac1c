"""Sends everything that one iteration of the event loop asks for as one pipeline, and gives each caller its own result.

1. One pipeline is on the wire at a time; what arrives in the meantime goes out with the next, so the order is kept.
   Large jobs have a queue and a connection of their own, so that small ones do not wait for megabytes.
2. Bounded in commands, in bytes and in time: a job is answered by its deadline, whatever Redis does.
3. A job that was answered is never sent afterwards. A refusal means that Redis has stored nothing and will not.
4. A job whose answer was lost is sent again only when it allows that, and only once.
5. An idle connection is tested before it is used: if a load balancer has forgotten it, it swallows everything
   without an error. A job that may be sent twice is sent over a second connection when the first has been silent for
   half of the time limit.

It knows nothing of streams.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from redis.exceptions import NoScriptError

from supervisor.broker.command_connection import pack_command
from supervisor.broker.command_pieces import AT_ONCE, pack_arguments, script_call, slices
from supervisor.broker.pipeline_connection import PipelineConnection
from supervisor.broker.redis_errors import REDIS_FAULTS, UNREACHABLE, code_of
from supervisor.broker.scripts import Script
from supervisor.errors import PublishError, PublishRefusedError, PublishUnknownError

#: Commands in one pipeline; a single job may have more.
COMMANDS_MAX = 500
QUEUED_JOBS_MAX = 10_000
QUEUED_BYTES_MAX = 64 * 1024 * 1024
#: A pipeline is at most about this long, so that one answer does not wait for megabytes.
PIPELINE_BYTES_MAX = 1024 * 1024
#: A job with more bytes, or with more than COMMANDS_MAX commands, is a large one.
SMALL_BYTES_MAX = 64 * 1024
#: How fast a slow machine stores large jobs. A command costs as much as that many bytes more.
_LARGE_BYTES_PER_S = 4 * 1024 * 1024
_COMMAND_BYTES = 200
FULL = "FULL"
#: The share of the time limit that the test of an idle connection may take.
_PROBE_SHARE = 0.25
#: The share of the time limit after which a silent connection may be dead.
_DOUBT_SHARE = 0.5


@dataclass(slots=True, eq=False)
class Job:
    """Commands that belong together, and the caller that waits for them."""

    #: The packed commands; a large one is in several pieces.
    pieces: list[bytes]
    commands: int
    size: int
    #: Resolves to the reply of the last command.
    done: asyncio.Future[Any]
    #: How long its caller waits, and until when by the loop's clock.
    limit_s: float = 0.0
    deadline_s: float = 0.0
    #: Returns the pieces of the same with the script's text, for a server that does not know the script.
    pack_text: Callable[[], list[bytes]] | None = None
    #: Sending it twice does no harm.
    repeatable: bool = False
    #: A command whose reply says how safe the write is; `done` then resolves to both replies.
    wait: bytes = b""
    #: Its last command is on the wire, or was sent and its answer lost. Redis does nothing before the last command.
    sent: bool = False
    #: Sent once without an answer.
    lost: bool = False

    def use_text(self) -> None:
        """Send the script's text instead of its digest from now on."""
        if self.pack_text is not None:
            self.pieces, self.pack_text = self.pack_text(), None


class PublishPipeline:
    """Sends jobs to one server; belongs to one event loop."""

    def __init__(self, connection: PipelineConnection, *, timeout_s: float) -> None:
        self._small = JobQueue(connection, timeout_s=timeout_s)
        self._large = JobQueue(connection.twin(), timeout_s=timeout_s, bytes_per_s=_LARGE_BYTES_PER_S)
        self._spent_s = 0.0

    def after(self, spent_s: float) -> Self:
        """Return this pipeline for a caller that has waited for `spent_s` already: it is answered that much earlier."""
        made = copy(self)
        made._spent_s = spent_s
        return made

    async def command(self, *arguments: str | bytes | int) -> Any:
        """Return the reply of one command. Raises PublishRefusedError or PublishUnknownError."""
        return await self._submit([pack_command(arguments)], 1)

    async def transaction(
        self, commands: Iterable[Sequence[str | bytes | int]], *, wait: Sequence[str | int] = ()
    ) -> Any:
        """Run all of the commands or none; return their replies. Raises as `command` does.

        With the command `wait` (WAIT, WAITAOF), also return its reply, or its refusal as an exception.
        """
        packed = [pack_command(("MULTI",))]
        for number, command in enumerate(commands, 1):
            packed.append(pack_command(tuple(command)))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        packed.append(pack_command(("EXEC",)))
        return await self._submit(packed, len(packed), wait=wait)

    async def script(
        self,
        script: Script,
        keys: Sequence[str],
        *arguments: str | bytes | int,
        repeatable: bool = False,
        wait: Sequence[str | int] = (),
    ) -> Any:
        """Return a script's reply; only a server that does not know it gets its text. Raises as `command` does.

        `wait` is that of `transaction`.
        """
        tail = (len(keys), *keys, *arguments)
        values = await pack_arguments(tail)
        return await self._submit(
            script_call("EVALSHA", script.sha, len(tail), values),
            1,
            partial(script_call, "EVAL", script.text, len(tail), values),
            repeatable=repeatable,
            wait=wait,
        )

    async def close(self) -> None:
        """Wait for the jobs under way, each of which has its deadline, then disconnect."""
        await self._small.close()
        await self._large.close()

    async def _submit(
        self,
        pieces: list[bytes],
        commands: int,
        pack_text: Callable[[], list[bytes]] | None = None,
        *,
        repeatable: bool = False,
        wait: Sequence[str | int] = (),
    ) -> Any:
        size = sum(map(len, pieces))
        queue = self._small
        if size > SMALL_BYTES_MAX or commands > COMMANDS_MAX:
            queue = self._large
            size += commands * _COMMAND_BYTES
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        packed_wait = pack_command(tuple(wait)) if wait else b""
        job = Job(pieces, commands, size, done, pack_text=pack_text, repeatable=repeatable, wait=packed_wait)
        queue.add(job)
        if queue is self._small and not self._spent_s:
            return await job.done
        timer = loop.call_later(max(0.0, job.limit_s - self._spent_s), give_up, job)
        try:
            return await job.done
        finally:
            timer.cancel()


class JobQueue:
    """Sends jobs over one connection, in order."""

    def __init__(self, connection: PipelineConnection, *, timeout_s: float, bytes_per_s: float | None = None) -> None:
        """Send over `connection`; with `bytes_per_s`, a job gets more time for its bytes and for those before it."""
        self._connection = connection
        self._timeout_s = timeout_s
        self._bytes_per_s = bytes_per_s
        #: Deadlines of small jobs are in the order of arrival; large jobs have timers of their own.
        self._queue: deque[Job] = deque()
        self._queued_bytes = 0
        self._sending: list[Job] = []
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Tasks that send a batch over a second connection.
        self._elsewhere: set[asyncio.Task[None]] = set()

    def add(self, job: Job) -> None:
        """Send the job soon, and give it a deadline. Raises PublishRefusedError when too many wait."""
        if len(self._queue) >= QUEUED_JOBS_MAX or self._queued_bytes + job.size > QUEUED_BYTES_MAX:
            raise PublishRefusedError(
                f"no room for {job.size:,} bytes: {len(self._queue):,} publishes with {self._queued_bytes:,} bytes wait"
                f" for Redis; at most {QUEUED_JOBS_MAX:,} with {QUEUED_BYTES_MAX:,} bytes may",
                FULL,
            )
        loop = asyncio.get_running_loop()
        self._queue.append(job)
        self._queued_bytes += job.size
        job.limit_s = self._timeout_s
        if self._bytes_per_s is not None:
            job.limit_s += (self._queued_bytes + sum(one.size for one in self._sending)) / self._bytes_per_s
        job.deadline_s = loop.time() + job.limit_s
        if self._task is None:
            # It runs in the loop's next iteration, so the first pipeline has everything that this one publishes.
            self._task = loop.create_task(self._send_all())
        if self._timer is None:
            self._timer = loop.call_at(job.deadline_s, self._expire)

    async def close(self) -> None:
        """Wait for the jobs under way, then disconnect."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._elsewhere:
            await asyncio.wait(self._elsewhere)
        if self._timer is not None:
            self._timer.cancel()
        await self._connection.close()

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
            if batch and commands + job.commands > COMMANDS_MAX:
                break
            self._pop()
            if not job.done.done():  # its caller was cancelled
                batch.append(job)
                commands += job.commands
                size += job.size
        return batch

    def _pop(self) -> Job:
        job = self._queue.popleft()
        self._queued_bytes -= job.size
        return job

    async def _send(self, batch: list[Job]) -> None:
        doubt = None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(batch[-1].deadline_s):
                await self._connection.open(self._timeout_s * _PROBE_SHARE)
                # Connecting takes long when Redis is away: meanwhile some were answered and must not be sent.
                batch[:] = self._unanswered(batch)
                if not batch:
                    return
                if any(job.repeatable and not job.lost for job in batch):
                    limit_s = batch[-1].deadline_s - loop.time()
                    doubt = loop.call_later(limit_s * _DOUBT_SHARE, self._send_elsewhere_soon, batch)
                await self._write(batch, self._connection)
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
        task = asyncio.create_task(self._send_elsewhere(batch))
        self._elsewhere.add(task)
        task.add_done_callback(self._elsewhere.discard)

    async def _send_elsewhere(self, batch: list[Job]) -> None:
        """Send the jobs that allow it over a second connection. If that answers, the first is dead and is dropped."""
        jobs = [job for job in batch if job.sent and job.repeatable and not job.lost and not job.done.done()]
        if not jobs:
            return
        second = self._connection.twin()
        try:
            async with asyncio.timeout_at(jobs[-1].deadline_s):
                await second.open(self._timeout_s)
                if not (jobs := self._unanswered(jobs)):
                    return
                for job in jobs:
                    job.lost = True
                    job.use_text()  # the first connection may still use the other form
                await self._write(jobs, second)
                await self._receive(jobs, second)
            if self._sending is batch:  # else the first has answered meanwhile, and may have the next batch in hand
                await self._connection.drop()
        except REDIS_FAULTS:  # the server is silent: the jobs are answered at their deadline
            pass
        finally:
            await second.drop()

    async def _write(self, batch: list[Job], connection: PipelineConnection) -> None:
        """Write the commands of small jobs at once, those of a large one in slices."""
        if len(batch) == 1:
            *first, last = slices(batch[0].pieces)
            for pieces in first:
                await connection.send(pieces)
                await asyncio.sleep(0)
            if first and not self._unanswered(batch):
                # Redis runs a transaction at its last command, and a command at its last byte; it gets neither.
                raise TimeoutError(f"not written within {batch[0].limit_s:.3g} s")
        else:
            last = [piece for job in batch for piece in job.pieces]
        for job in batch:
            job.sent = True
        await connection.send([*last, *_waits(batch)])

    async def _receive(self, batch: list[Job], connection: PipelineConnection) -> None:
        unknown_script: list[Job] = []
        waiting: list[tuple[Job, Any]] = []
        waits = _waits(batch)
        for job in batch:
            reply, error = await connection.replies(job.commands)
            if job.done.done():
                continue
            if isinstance(error, NoScriptError) and job.pack_text is not None:
                job.use_text()
                job.sent = job.lost
                unknown_script.append(job)
            elif error is not None:
                failure = PublishRefusedError(f"Redis refused: {error}", code_of(error))
                failure.__cause__ = error
                job.done.set_exception(failure)
            elif job.wait:
                waiting.append((job, reply))
            else:
                job.done.set_result(reply)
        safety = {wait: (await connection.replies(1))[0] for wait in waits}
        for job, reply in waiting:
            if not job.done.done():
                job.done.set_result((reply, safety[job.wait]))
        self._requeue(unknown_script)

    def _requeue(self, jobs: list[Job]) -> None:
        self._queue.extendleft(reversed(jobs))
        self._queued_bytes += sum(job.size for job in jobs)

    def _fail(self, jobs: Iterable[Job], error: Exception) -> None:
        for job in jobs:
            if not job.done.done():
                failure = _failure(job, f"{type(error).__name__}: {error}".rstrip(": "), code_of(error))
                failure.__cause__ = error
                job.done.set_exception(failure)

    def _unanswered(self, jobs: Iterable[Job]) -> list[Job]:
        """Answer the jobs whose deadline has passed; return those that still wait."""
        now_s = asyncio.get_running_loop().time()
        waiting: list[Job] = []
        for job in jobs:
            if job.done.done():
                continue
            if job.deadline_s > now_s:
                waiting.append(job)
            else:
                give_up(job)
        return waiting

    def _expire(self) -> None:
        """Fail the jobs whose deadline has passed, and remove them from the queue."""
        waiting = self._unanswered(self._sending)
        while self._queue and not self._unanswered([self._queue[0]]):
            self._pop()
        if self._queue:
            waiting.append(self._queue[0])
        self._timer = None
        if waiting:
            self._timer = asyncio.get_running_loop().call_at(waiting[0].deadline_s, self._expire)


def give_up(job: Job) -> None:
    """Answer a job whose time is over; it is not sent afterwards."""
    if not job.done.done():
        job.done.set_exception(_failure(job, f"no answer within {job.limit_s:.3g} s", UNREACHABLE))


def _waits(batch: Iterable[Job]) -> list[bytes]:
    """Return the commands that wait for the safety of the writes; one for all jobs that have the same."""
    return list(dict.fromkeys(job.wait for job in batch if job.wait))


def _failure(job: Job, reason: str, code: str) -> PublishError:
    if job.sent or job.lost:
        return PublishUnknownError(f"Redis may or may not have stored it: {reason}", code)
    return PublishRefusedError(f"Redis can't be reached: {reason}", code)
