"""The processes in which handlers with `run_in = "process"` run, and the small process that forks them.

1. A worker forks the server before it has threads and an event loop. The server has the handlers loaded and forks a
   child for each socket that it is sent, so a child starts within milliseconds and shares the server's memory.
2. A child takes one call after another from its socket, and ends with it.
3. The server tells the worker each child's pid, and how it ended. It ends with the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import signal
import socket
import struct
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from supervisor.context import Context, enter
from supervisor.core.emit import emits_in
from supervisor.messages import BatchError, Message
from supervisor.settings.paths import redis_url
from supervisor.worker.thread_calls import require_done

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.handling.loader import HandlerSpec
    from supervisor.settings.model import Settings

#: Before each message on a child's socket: its length.
HEAD = struct.Struct("!Q")
PACKET_BYTES_MAX = 4096
#: (stream, group, [(id, flat fields, failures before)])
Call = tuple[str, str, list[tuple[str, list[bytes], int]]]


class RemoteTracebackError(Exception):
    """The traceback of another process, as the cause of the error that was raised there."""

    def __str__(self) -> str:
        """Return the text."""
        return f"\n{self.args[0]}"


def start_server(settings: Settings, specs: Sequence[HandlerSpec], worker: str) -> socket.socket:
    """Fork the server; return the socket to ask it for children. Raises OSError."""
    own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        own.close()
        try:
            _serve(settings, specs, worker, its)
        finally:
            os._exit(1)
    its.close()
    own.setblocking(False)
    return own


def _serve(settings: Settings, specs: Sequence[HandlerSpec], worker: str, control: socket.socket) -> NoReturn:
    woken, wakes = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not control:
                os.read(woken, 4096)
                _send_ended(control)
                continue
            data, fds, _, _ = socket.recv_fds(control, 1, 1)
            if not data:
                os._exit(0)
            try:
                pid = os.fork()
            except OSError as error:
                os.close(fds[0])
                _send(control, error=error.errno)
                continue
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                selector.close()
                for fd in (woken, wakes, control.detach()):
                    os.close(fd)
                _run_child(settings, specs, worker, socket.socket(fileno=fds[0]))
            os.close(fds[0])
            _send(control, pid=pid)


def _send_ended(control: socket.socket) -> None:
    """Send the worker the pids and exit codes of children that have ended."""
    with contextlib.suppress(ChildProcessError):  # none is left
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _send(control, pid=ended[0], ended=os.waitstatus_to_exitcode(ended[1]))


def _send(control: socket.socket, **said: Any) -> None:
    try:
        control.send(json.dumps(said).encode())
    except OSError:  # the worker is gone
        os._exit(0)


def _run_child(settings: Settings, specs: Sequence[HandlerSpec], worker: str, calls: socket.socket) -> NoReturn:
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        enter(Context(settings.app, settings.state_dir.absolute(), worker, redis_url(settings)))
        by_name = {(spec.stream, spec.group): spec for spec in specs}
        while (asked := _read(calls)) is not None:
            stream, group, messages = pickle.loads(asked)
            reply = _encoded(_answer(by_name[stream, group], messages))
            calls.sendall(HEAD.pack(len(reply)) + reply)
    except OSError:  # the worker is gone, or has given this call up
        pass
    finally:
        os._exit(0)


def _read(calls: socket.socket) -> bytes | None:
    with calls.makefile("rb", buffering=0) as file:
        data = _exactly(file, HEAD.size)
        return data and _exactly(file, HEAD.unpack(data)[0])


def _exactly(file: Any, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = file.read(size - len(data))
        if not part:
            return None
        data += part
    return bytes(data)


def _answer(spec: HandlerSpec, sent: list[tuple[str, list[bytes], int]]) -> tuple[Any, BaseException | None]:
    """Run the handler; return the list of `Emit` that it returned, if any, and what it or the decoding raised."""
    messages, arguments, failed = [], [], {}
    for message_id, flat, failures in sent:
        message = Message(message_id, spec.stream, spec.group, deliveries=failures + 1)
        message.flat = flat
        try:
            arguments.append(spec.decode(message))
            messages.append(message)
        except Exception as error:
            failed[message_id] = _with_traceback(error)
    if failed and not spec.batch:
        return None, failed.popitem()[1]
    try:
        returned = require_done(spec.function(arguments if spec.batch else arguments[0])) if arguments else None
        result = emits_in(returned) or None  # nothing else is used, however large it is or whether it can be sent
    except BatchError as error:
        return None, BatchError({**failed, **error.failed})
    except BaseException as error:
        own = _with_traceback(error)
        return None, BatchError({**failed, **{message.id: own for message in messages}}) if failed else own
    return result, BatchError(failed) if failed else None


def _with_traceback(error: BaseException) -> BaseException:
    text = "".join(traceback.format_exception(error))
    error.__cause__ = RemoteTracebackError(text)
    return error.with_traceback(None)


def _encoded(answer: tuple[Any, BaseException | None]) -> bytes:
    result, error = answer
    text = str(error.__cause__) if error is not None and error.__cause__ is not None else ""
    try:
        data = pickle.dumps((result, error, text))
        pickle.loads(data)  # an exception may fail only there
    except Exception as refused:
        why = error if error is not None else refused
        data = pickle.dumps((None, RuntimeError(f"{type(why).__name__}: {why}"), text))
    return data
