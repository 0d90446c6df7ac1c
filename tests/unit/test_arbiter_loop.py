"""The order in which the arbiter's loop handles what arrives at once."""

import subprocess
import sys

import pytest

SIGNALS = """
import os, signal
from supervisor.arbiter.loop import Loop

seen = []
loop = Loop(print)
for number in (signal.SIGCHLD, signal.SIGTERM):
    loop.on_signal(number, lambda number=number: (seen.append(number.name), loop.stop()))
for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGCHLD):
    os.kill(os.getpid(), number)
loop.run()
print(*seen)
"""


EXITS = """
import os, selectors, signal
from supervisor.arbiter.loop import Loop

seen = []
loop = Loop(print)
read, write = os.pipe()
loop.watch(read, selectors.EVENT_READ, lambda _events: (seen.append("EXIT"), loop.stop()))
loop.on_signal(signal.SIGTERM, lambda: seen.append("SIGTERM"))
os.write(write, b".")  # as a pidfd is readable when its process has exited
os.kill(os.getpid(), signal.SIGTERM)
loop.run()
print(*seen)
"""


@pytest.mark.parametrize(("code", "order"), [(SIGNALS, "SIGTERM SIGCHLD"), (EXITS, "SIGTERM EXIT")])
def test_a_stop_comes_before_the_exits_that_it_caused(code: str, order: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == order
