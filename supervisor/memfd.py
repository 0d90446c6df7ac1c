"""Anonymous memory files, which forked children share."""

import contextlib
import os
import tempfile

#: In memory, where there is one.
_FOLDER = "/dev/shm"


def create_memfd(name: str, size: int = 0) -> int:
    """Create a file of zeros and return its descriptor, which an exec closes. `name` is shown in /proc.

    Raises OSError if there is no room for it.
    """
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            return _extended(os.memfd_create(f"supervisor-{name}", os.MFD_CLOEXEC), size)
    # Without memfd, as on macOS, an unlinked file does the same.
    folder = _FOLDER if os.access(_FOLDER, os.W_OK | os.X_OK) else None
    fd, path = tempfile.mkstemp(prefix=f"supervisor-{name}-", dir=folder)
    os.unlink(path)
    return _extended(fd, size, allocates=hasattr(os, "posix_fallocate"))


def _extended(fd: int, size: int, *, allocates: bool = False) -> int:
    """Extend the file to `size`; close it when that fails."""
    try:
        os.ftruncate(fd, size)
        if size and allocates:
            os.posix_fallocate(fd, 0, size)  # a full disk is an error here, and no SIGBUS later
    except OSError:
        os.close(fd)
        raise
    return fd
