"""Forks children with the arbiter's loop and fork, and sends each a SIGTERM during the fork.

Run as `python -m tests.support.fork_window MODE COUNT`; it prints what was heard and how the children ended.

- child: the signal is there when the new process begins, before a line of the supervisor's runs in it.
- parent: the signal comes to the arbiter while it forks.
- handler: the child has handlers of its own when its signals come.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter

from supervisor.arbiter.child_processes import ChildProcesses, Status
from supervisor.arbiter.fork import Descriptors, fork_child
from supervisor.arbiter.loop import Loop
from supervisor.errors import EXIT_FAILED
from supervisor.memfd import create_memfd

CODE_RAN = 7
CODE_HEARD = 9
#: The wait at the end for exits that the loop has not seen yet.
REST_S = 0.2


def plain() -> int:
    """Run as a child that does nothing, long enough for a lost signal to be noticed."""
    return CODE_RAN


def with_handler() -> int:
    """Run as a child that gets one SIGTERM in a plain handler and another in an asyncio loop.

    The first is the one that CPython 3.11 also writes to the wakeup descriptor of the process that forked it.
    """
    plainly: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: plainly.append(number))
    os.kill(os.getpid(), signal.SIGTERM)

    async def main() -> int:
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(told.wait(), 30)
        return CODE_HEARD if plainly == [signal.SIGTERM] else EXIT_FAILED

    return asyncio.run(main())


class Storm:
    """Forks one child after the other."""

    def __init__(self, mode: str, count: int) -> None:
        self.left = count
        self.heard = 0
        self.ends: Counter[str] = Counter()
        self.body = with_handler if mode == "handler" else plain
        self.loop = Loop(self._failed)
        self.loop.on_signal(signal.SIGTERM, self._hear)
        self.children = ChildProcesses(self.loop)
        self.stack_fd = create_memfd("stacks")
        if mode == "child":
            os.register_at_fork(after_in_child=self._hit)
        elif mode == "parent":
            os.register_at_fork(before=self._hit)

    def _hit(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def _hear(self) -> None:
        self.heard += 1

    def _failed(self, error: Exception) -> None:
        raise error

    def fork(self) -> None:
        self.left -= 1
        close = [*self.loop.fds(), *self.children.fds()]
        pid = fork_child(self.body, name="child", fds=Descriptors(self.stack_fd, close))
        self.children.add(pid, self._gone)

    def _gone(self, status: Status) -> None:
        code, number = status
        self.ends[f"code {code}" if number is None else signal.Signals(number).name] += 1
        now_s = time.monotonic()
        if self.left:
            self.loop.call_at(now_s, self.fork)
        else:
            self.loop.call_at(now_s + REST_S, self.loop.stop)


def main() -> None:
    storm = Storm(sys.argv[1], int(sys.argv[2]))
    storm.fork()
    storm.loop.run()
    print(json.dumps({"heard": storm.heard, "ends": storm.ends}))


if __name__ == "__main__":
    main()
