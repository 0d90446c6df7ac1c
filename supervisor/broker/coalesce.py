"""Sends what one turn of the event loop asks for as one pipeline, and tells each caller its own result.

1. One pipeline is on the wire at a time; what comes meanwhile goes out with the next: order is kept.
2. Bounded in commands, in bytes and in time: a job is answered by its deadline, whatever Redis does.
3. A job whose answer was lost is sent again only when it says that it may be, and only once.

It knows nothing of streams.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from supervisor.broker.redis_errors import REDIS_FAULTS, UNREACHABLE, code_of
from supervisor.broker.wire import pack_command
from supervisor.errors import PublishError, PublishRefusedError, PublishUnknownError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.broker.pipeline_connection import PipelineConnection
    from supervisor.broker.scripts import Script

#: Commands in one pipeline; a single job may have more.
COMMANDS_MAX = 500
QUEUED_JOBS_MAX = 10_000
QUEUED_BYTES_MAX = 64 * 1024 * 1024
#: What is sent at once is at most about this long, so that one answer does not wait for megabytes.
PIPELINE_BYTES_MAX = 4 * 1024 * 1024
FULL = "FULL"


@dataclass(slots=True, eq=False)
class Job:
    """Commands that belong together, and who waits for them."""

    commands: list[bytes]
    size: int
    #: Resolves to the reply of the last command.
    done: asyncio.Future[Any]
    #: By the loop's clock.
    deadline_s: float
    #: What to send when the server does not know the script.
    with_text: bytes | None = None
    #: To send it twice does no harm.
    repeatable: bool = False
    #: It is on the wire, or was and the answer was lost.
    sent: bool = False
    lost: bool = False


class Coalescer:
    """The queue in front of one connection. Belongs to one event loop."""

    def __init__(self, connection: PipelineConnection, *, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._queue: deque[Job] = deque()
        self._queued_bytes = 0
        self._sending: list[Job] = []
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def command(self, *arguments: str | bytes | int) -> Any:
        """One command's reply. Raises PublishRefusedError or PublishUnknownError."""
        return await self._submit([pack_command(arguments)])

    async def transaction(self, commands: Sequence[Sequence[str | bytes | int]]) -> Any:
        """All of the commands or none; the list of their replies. Raises as `command` does."""
        return await self._submit([pack_command(tuple(c)) for c in (("MULTI",), *commands, ("EXEC",))])

    async def script(
        self, script: Script, keys: Sequence[str], *arguments: str | bytes | int, repeatable: bool = False
    ) -> Any:
        """A script's reply; its text is sent only when the server does not know it yet. Raises as `command` does."""
        tail = (len(keys), *keys, *arguments)
        text = pack_command(("EVAL", script.text, *tail))
        return await self._submit([pack_command(("EVALSHA", script.sha, *tail))], text, repeatable=repeatable)

    async def close(self) -> None:
        """Wait for what is on its way (each job has its deadline), then disconnect."""
        if self._task is not None:
            await asyncio.wait([self._task])
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
            # It runs in the loop's next turn, so all that this one publishes is in the first pipeline.
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
            if not job.done.done():  # it expired, or its caller was cancelled
                batch.append(job)
                commands += len(job.commands)
                size += job.size
        return batch

    async def _send(self, batch: list[Job]) -> None:
        try:
            async with asyncio.timeout_at(batch[-1].deadline_s):
                await self._connection.open()
                for job in batch:
                    job.sent = True
                await self._receive(batch)
        except REDIS_FAULTS as error:
            await self._connection.drop()
            again = [job for job in batch if job.sent and job.repeatable and not job.lost and not job.done.done()]
            for job in again:
                job.lost = True
            self._fail([job for job in batch if job not in again], error)
            self._again(again)

    async def _receive(self, batch: list[Job]) -> None:
        replies = self._connection.replies([command for job in batch for command in job.commands])
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
        self._again(unknown_script)

    def _again(self, jobs: list[Job]) -> None:
        self._queue.extendleft(reversed(jobs))
        self._queued_bytes += sum(job.size for job in jobs)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        for job in jobs:
            if not job.done.done():
                failure = _failure(job, f"{type(error).__name__}: {error}".rstrip(": "), code_of(error))
                failure.__cause__ = error
                job.done.set_exception(failure)

    def _expire(self) -> None:
        """Answer those whose time is up; deadlines are in the order of arrival."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for job in (*self._sending, *self._queue):
            if job.done.done():
                continue
            if job.deadline_s > loop.time():
                self._timer = loop.call_at(job.deadline_s, self._expire)
                return
            job.done.set_exception(_failure(job, f"no answer within {self._timeout_s:g} s", UNREACHABLE))


def _failure(job: Job, why: str, code: str) -> PublishError:
    if job.sent or job.lost:
        return PublishUnknownError(f"Redis may or may not have stored it: {why}", code)
    return PublishRefusedError(f"Redis can't be reached: {why}", code)
