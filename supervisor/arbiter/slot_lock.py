"""Two processes never work in one slot: they would share a consumer, and each would run what the other has in hand.

Normally the predecessor is dead before its successor is forked. After the arbiter itself was killed,
nobody has seen the old workers die; then the new ones wait here for the kernel to say so.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.settings.place import Place


def hold(place: Place, slot: int) -> None:
    """Wait for the slot's lock and keep it until this process ends. Raises OSError when it can't be made.

    The lock is a record lock, which is the process's own: no grandchild that inherits descriptors holds
    it on (fcntl(2); with flock(2) it would).
    """
    place.slots.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(place.slots / f"{slot}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.lockf(fd, fcntl.LOCK_EX)
