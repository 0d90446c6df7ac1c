"""Paths of unix sockets: the kernel takes about a hundred bytes, however long a file's path may be.

A longer path is opened through a descriptor of its folder. It depends on nothing but the path itself, so everybody who
asks for the socket (another login, sudo, a service) finds the same one, and no folder in /tmp is needed.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: sun_path holds 108 bytes on Linux and 104 on macOS, with the closing NUL.
SOCKET_PATH_BYTES_MAX = 103
_DESCRIPTORS = "/proc/self/fd"


def fits_socket(path: Path | str) -> bool:
    """Return whether the kernel takes the path for a socket as it is."""
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX


def has_socket_path(path: Path | str) -> bool:
    """Return whether `socket_path` works for the path on this system."""
    name = os.path.basename(path)
    return fits_socket(path) or (fits_socket(f"{_DESCRIPTORS}/{'0' * 10}/{name}") and os.path.isdir(_DESCRIPTORS))


@contextmanager
def socket_path(path: Path | str) -> Iterator[str]:
    """Yield a path to the same socket that bind and connect take, valid inside the block. Raises OSError."""
    if fits_socket(path):
        yield str(path)
        return
    folder, name = os.path.split(path)
    if not has_socket_path(path):
        raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket on this system", str(path))
    fd = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"{_DESCRIPTORS}/{fd}/{name}"
    finally:
        os.close(fd)
