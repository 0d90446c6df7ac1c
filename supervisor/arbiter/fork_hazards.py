"""What a fork would break in the child: other threads, sockets, event loops, opened devices.

A fork keeps one thread and the locks of all. Sockets and event loops would be shared by all children.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

THREADS, CONNECTION, LOOP, DEVICE = "threads", "connection", "event loop", "device"
#: Drivers whose state no child can use.
_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


@dataclass(frozen=True, slots=True)
class Hazard:
    """One thing that a fork would break."""

    #: THREADS, CONNECTION, LOOP or DEVICE.
    kind: str
    #: Which threads, which peer.
    detail: str


def thread_count() -> int:
    """Return the number of this process's threads, also of those that Python does not know."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def thread_names() -> str:
    """Return the names of the threads beside the main one."""
    return ", ".join(thread.name for thread in threading.enumerate()[1:]) or "created outside of Python"


def descriptors() -> dict[int, str]:
    """Return what each descriptor of this process is."""
    targets = {}
    for name in listed_descriptors():
        with contextlib.suppress(OSError):
            targets[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return targets


def listed_descriptors() -> list[str]:
    """Return the numbers of this process's descriptors, that of this list among them."""
    try:
        return os.listdir("/proc/self/fd")
    except OSError:  # no /proc: then nothing is known of them
        return []


def standard_streams(fds: dict[int, str]) -> set[int]:
    """Return the descriptors of stdin, stdout and stderr, which may be sockets, and the log's copies of them."""
    standard = {target for fd, target in fds.items() if fd in (0, 1, 2)}
    return {fd for fd, target in fds.items() if target in standard}


def hazards_among(fds: dict[int, str], known: Collection[int]) -> Iterator[tuple[int, Hazard]]:
    """Yield the descriptors that children must not share, except the known ones."""
    for fd, target in sorted(fds.items()):
        if fd in known:
            continue
        if target.startswith("socket:"):
            hazard = _of_socket(fd)
            if hazard is not None:
                yield fd, hazard
        elif target == "anon_inode:[eventpoll]":
            yield fd, Hazard(LOOP, "an event loop")
        elif target.startswith(_DEVICES):
            yield fd, Hazard(DEVICE, target)


def _of_socket(fd: int) -> Hazard | None:
    try:
        with socket.socket(fileno=os.dup(fd)) as found:
            return Hazard(*_described(found))
    except OSError:  # closed meanwhile
        return None


def _described(found: socket.socket) -> tuple[str, str]:
    if found.type == socket.SOCK_STREAM and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return CONNECTION, f"listening on {_address(found.getsockname())}"
    try:
        peer = _address(found.getpeername())
    except OSError:
        return (LOOP, "a socket") if found.type != socket.SOCK_STREAM else (CONNECTION, "not connected")
    if found.family == socket.AF_UNIX and not peer:
        return LOOP, "an event loop"  # the pair by which it wakes itself
    return CONNECTION, f"connected to {peer}"


def _address(address: Any) -> str:
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return address.decode(errors="replace").replace("\0", "@") if isinstance(address, bytes) else str(address)
