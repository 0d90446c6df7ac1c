"""Files without a name that live in memory: shared with forked children, gone with their last user."""

from __future__ import annotations

import os
import tempfile


def create_memfd(name: str) -> int:
    """A new empty one; its descriptor, which an exec closes. `name` shows in /proc."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"supervisor-{name}", os.MFD_CLOEXEC)
    # macOS: an unlinked file does the same.
    fd, path = tempfile.mkstemp(prefix=f"supervisor-{name}-")
    os.unlink(path)
    return fd
