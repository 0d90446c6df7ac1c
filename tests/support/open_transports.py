"""Fails the test whose event loop was closed with an open socket.

Python reports such a socket only when it collects garbage, which is during some later test. uvloop's loops close
their sockets themselves.
"""

import asyncio
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Generator

import pytest

#: What was open in the loops that were closed since the last test ended; also by threads.
_found: list[str] = []
_close = BaseSelectorEventLoop.close


def pytest_configure() -> None:
    """Look at each loop when it is closed."""
    BaseSelectorEventLoop.close = _close_and_look  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """Fail for what is found after the test's fixtures have ended, their loops too."""
    try:
        yield
    finally:
        found = take()
    if found:
        pytest.fail(f"an event loop was closed with open sockets: {', '.join(found)}", pytrace=False)


def take() -> list[str]:
    """Return what was found, and forget it."""
    found = _found.copy()
    _found.clear()
    return found


def _close_and_look(loop: BaseSelectorEventLoop) -> None:
    if not loop.is_closed():
        _found.extend(_described(transport) for transport in list(loop._transports.values()) if transport._sock)
    _close(loop)


def _described(transport: asyncio.BaseTransport) -> str:
    own, peer = (transport.get_extra_info(name) for name in ("sockname", "peername"))
    return f"{transport!r} of {type(transport.get_protocol()).__name__}, from {own} to {peer}"
