"""Calls of plain functions in processes of the worker: computing there holds up neither its loop nor its threads.

A call that exceeds its time, and one whose worker gives it up, ends with its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import socket
from collections import deque
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from supervisor.core.lacks import NO_PROCESS
from supervisor.errors import HandlerProcessError
from supervisor.messages import BatchError, Message
from supervisor.text import signal_name
from supervisor.worker.process_server import HEAD, PACKET_BYTES_MAX, RemoteTracebackError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from supervisor.handling.loader import HandlerSpec

#: How long to wait for the news of how a child ended.
_NEWS_S = 1.0


class UndecodedError(BatchError):
    """Some messages of a batch could not be decoded, and the handler returned `result` for the others."""

    def __init__(self, failed: Mapping[str, BaseException], result: object) -> None:
        super().__init__(failed)
        self.result = result


class _Child:
    """One process, and the worker's end of its socket."""

    def __init__(self, calls: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.calls = calls
        #: Calls that it was given.
        self.done = 0
        #: Its pid, once it is started; its exit code, once it has ended and its pid may be another process's.
        self.pid: asyncio.Future[int] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()


class ProcessPool:
    """The processes of one worker, for all its handlers that run in processes."""

    def __init__(self, control: socket.socket, size: int, bug: asyncio.Future[None]) -> None:
        """Ask the server behind `control` for processes; when it ends, `bug` fails: none can be started any more."""
        self._control = control
        self._bug = bug
        self._loop = asyncio.get_running_loop()
        self._free = asyncio.Semaphore(size)
        self._idle: list[_Child] = []
        self._starting: deque[_Child] = deque()
        #: By pid.
        self._living: dict[int, _Child] = {}
        self.size = size
        self._loop.add_reader(control.fileno(), self._news)

    async def call(self, data: bytes, began: Callable[[float], None], max_tasks: int) -> bytes:
        """Have a free process answer; replace it after `max_tasks` calls, if that is not 0.

        Raises HandlerProcessError when it ends meanwhile, OSError if none can be started.
        """
        async with self._free:
            child = self._idle.pop() if self._idle else await self._start()
            began(monotonic())
            answered = False
            try:
                await self._loop.sock_sendall(child.calls, HEAD.pack(len(data)) + data)
                reply = await self._receive(child.calls, HEAD.unpack(await self._receive(child.calls, HEAD.size))[0])
                answered = True
            except (ConnectionError, EOFError):
                raise HandlerProcessError(await self._how_it_ended(child)) from None
            finally:
                child.done += 1
                if answered and not (max_tasks and child.done >= max_tasks):
                    self._idle.append(child)
                else:
                    self._end(child, kill=not answered)
            return reply

    def close(self) -> None:
        """End all processes."""
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        for child in self._idle:
            child.calls.close()

    async def _start(self) -> _Child:
        own, its = socket.socketpair()
        own.setblocking(False)
        child = _Child(own, self._loop)
        try:
            try:
                socket.send_fds(self._control, [b"+"], [its.fileno()])
            except ConnectionError:
                self._server_ended()  # the call ends with the worker
            self._starting.append(child)
            await child.pid
            return child
        except BaseException:
            own.close()
            raise
        finally:
            its.close()

    def _end(self, child: _Child, *, kill: bool) -> None:
        child.calls.close()
        if kill and not child.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid.result(), signal.SIGKILL)

    async def _receive(self, calls: socket.socket, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = await self._loop.sock_recv(calls, min(size - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    async def _how_it_ended(self, child: _Child) -> str:
        await asyncio.wait([child.ended], timeout=_NEWS_S)
        if not child.ended.done():
            return "the handler's process has closed its connection"
        code = child.ended.result()
        how = f"was ended by {signal_name(-code)}" if code < 0 else f"left with exit code {code}"
        return f"the handler's process {how}"

    def _news(self) -> None:
        try:
            while data := self._control.recv(PACKET_BYTES_MAX):
                self._note(json.loads(data))
        except BlockingIOError:
            return
        except ConnectionError:  # it has ended before it read all that it was asked
            pass
        self._loop.remove_reader(self._control.fileno())
        self._server_ended()

    def _server_ended(self) -> None:
        if not self._bug.done():
            self._bug.set_exception(HandlerProcessError("the process that forks the handlers' processes has ended"))

    def _note(self, said: dict[str, Any]) -> None:
        if "ended" in said:
            gone = self._living.pop(said["pid"], None)
            if gone is not None:
                gone.ended.set_result(said["ended"])
            return
        child = self._starting.popleft()
        if child.pid.done():  # its call was cancelled, and it ends because its socket is closed
            return
        if "error" in said:
            child.pid.set_exception(OSError(said["error"], os.strerror(said["error"]), NO_PROCESS))
        else:
            self._living[said["pid"]] = child
            child.pid.set_result(said["pid"])


class ProcessCalls:
    """The calls of one handler."""

    def __init__(self, pool: ProcessPool, spec: HandlerSpec) -> None:
        self._pool = pool
        self._stream, self._group, self._max_tasks = spec.stream, spec.group, spec.options.max_tasks
        self._began: dict[object, float] = {}

    @property
    def oldest_s(self) -> float:
        """When the call that runs longest began, by `time.monotonic`; infinity when none runs."""
        return min(self._began.values(), default=inf)

    @property
    def running(self) -> int:
        """How many calls run."""
        return len(self._began)

    def charge_overdue(self) -> None:
        """Do nothing: a process is killed at the time limit."""

    async def run(self, _: Callable[[Any], Any], argument: Any, began: Callable[[float], None]) -> Any:
        """Call the handler with a message or a batch in the first free process, and return what it returns."""
        messages: list[Message] = [argument] if isinstance(argument, Message) else argument
        sent = [(message.id, list(message.flat), message.failures) for message in messages]
        call = object()

        def note(now_s: float) -> None:
            self._began[call] = now_s
            began(now_s)

        try:
            reply = await self._pool.call(pickle.dumps((self._stream, self._group, sent)), note, self._max_tasks)
        finally:
            self._began.pop(call, None)
        result, error, text = pickle.loads(reply)
        if isinstance(error, BatchError) and result is not None:
            raise UndecodedError(error.failed, result)
        if error is not None:
            raise error from (RemoteTracebackError(text.strip()) if text else None)
        return result
