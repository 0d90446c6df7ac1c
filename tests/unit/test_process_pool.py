"""The processes of handlers with `run_in = "process"`, with a stand-in for the server that forks them."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor.errors import HandlerProcessError
from supervisor.worker.process_calls import ProcessPool
from supervisor.worker.process_server import HEAD

PID = 4242


class Server:
    """The other end of a pool's control socket."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    async def start_child(self) -> socket.socket:
        """Take the request for a process, and return the process's end of its socket."""
        _, fds, _, _ = await asyncio.to_thread(socket.recv_fds, self._control, 1, 1)
        self.tell(pid=PID)
        return socket.socket(fileno=fds[0])

    def tell(self, **said: Any) -> None:
        self._control.send(json.dumps(said).encode())


@pytest.fixture
def control() -> Iterator[tuple[socket.socket, Server]]:
    own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own.setblocking(False)
    with own, its:
        yield own, Server(its)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    pids: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: pids.append(pid))
    return pids


def pool_of(control: socket.socket) -> ProcessPool:
    return ProcessPool(control, 1, asyncio.get_running_loop().create_future())


async def test_a_process_that_has_ended_is_not_killed(control: tuple[socket.socket, Server], killed: list[int]) -> None:
    """Its pid may be another process's by then."""
    own, server = control
    pool = pool_of(own)
    call = asyncio.create_task(pool.call(b"job", lambda _: None, 0))
    child = await server.start_child()
    await asyncio.to_thread(child.recv, 100)
    child.close()
    for _ in range(10):  # its socket is closed first, and it is known how it ended a moment later
        await asyncio.sleep(0)
    server.tell(pid=PID, ended=3)
    with pytest.raises(HandlerProcessError, match="left with exit code 3"):
        await call
    pool.close()
    assert killed == []


async def test_a_process_is_killed_whose_pid_another_one_had_before(
    control: tuple[socket.socket, Server], killed: list[int]
) -> None:
    own, server = control
    pool = pool_of(own)
    call = asyncio.create_task(pool.call(b"job", lambda _: None, 1))
    first = await server.start_child()
    await asyncio.to_thread(first.recv, 100)
    first.sendall(HEAD.pack(4) + b"done")
    assert await call == b"done"
    server.tell(pid=PID, ended=0)
    first.close()

    call = asyncio.create_task(pool.call(b"long job", lambda _: None, 1))
    second = await server.start_child()
    await asyncio.to_thread(second.recv, 100)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    second.close()
    pool.close()
    assert killed == [PID]
