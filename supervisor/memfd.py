"""Anonymous memory files, which forked children share."""

import os
import tempfile


def create_memfd(name: str) -> int:
    """Create an empty file and return its descriptor, which an exec closes. `name` is shown in /proc."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"supervisor-{name}", os.MFD_CLOEXEC)
    # macOS has no memfd; an unlinked file does the same.
    fd, path = tempfile.mkstemp(prefix=f"supervisor-{name}-")
    os.unlink(path)
    return fd
