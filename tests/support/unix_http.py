"""HTTP through a unix socket.

httpcore closes no socket whose connection is refused, and Python reports that during some later test. So the client
is used only when somebody listens.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.waiting import eventually


def listens(path: Path) -> bool:
    """Return whether a connection to the socket is accepted."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextmanager
def unix_browser(path: Path, base_url: str) -> Iterator[httpx.Client]:
    """Yield a client of the service that listens there, or will soon."""
    eventually(lambda: listens(path), what=f"somebody listens at {path}")
    transport = httpx.HTTPTransport(uds=str(path), verify=False)
    with httpx.Client(base_url=base_url, transport=transport, timeout=30, trust_env=False) as client:
        yield client
