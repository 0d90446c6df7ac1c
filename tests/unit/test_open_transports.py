"""A test that leaves a socket open in a closed event loop fails itself."""

import asyncio
import socket

from tests.support import open_transports


def test_a_loop_that_is_closed_with_an_open_socket_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        loop = asyncio.new_event_loop()
        transport, _ = loop.run_until_complete(loop.create_connection(asyncio.Protocol, *address))
        loop.close()
    [found] = open_transports.take()
    assert f"to {address}" in found
    transport._sock.close()
    transport._sock = None  # else Python reports it here, too
