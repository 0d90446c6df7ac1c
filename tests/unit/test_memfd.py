"""A memory file that can not be extended is closed."""

import errno
import os

import pytest

from supervisor.memfd import create_memfd


def test_a_file_without_room_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "ftruncate", full)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="no space left"):
        create_memfd("test", 4096)
    assert os.listdir("/proc/self/fd") == before
