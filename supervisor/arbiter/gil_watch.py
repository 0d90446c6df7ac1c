"""Tells a worker whose event loop is starved by a thread from one whose event loop is blocked.

A thread that holds Python's lock for seconds (a regular expression, a large sort) keeps the loop from beating. The
main thread then waits for the lock and wakes up every 5 ms to ask for it. A loop that is blocked by its own code either
computes or does not wake up at all. Linux shows which it is; elsewhere no worker counts as starved.
"""

import contextlib
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

#: Two samples must be this far apart.
SPAN_S = 0.2
#: A waiting main thread wakes up about 200 times a second, fewer where processors are scarce.
WAKES_PER_S_MIN = 20
#: It uses hardly any processor time.
CPU_SHARE_MAX = 0.04
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: The kernel functions of a thread that sleeps on purpose, again and again.
_OWN_SLEEP = re.compile("nanosleep|hrtimer|poll|select")


@dataclass(frozen=True, slots=True)
class Sample:
    """The main thread of a process at one moment."""

    at_s: float
    cpu_s: float
    wakes: int


@dataclass(slots=True)
class GilWatch:
    """Looks at the main threads of workers that give no beat."""

    #: pid -> the first sample of its present silence.
    _first: dict[int, Sample] = field(default_factory=dict)
    #: Processes whose main thread was seen to sleep on purpose.
    _sleeping: set[int] = field(default_factory=set)

    def is_starved(self, pid: int) -> bool:
        """Return whether the main thread waits for another thread of its process; True until enough was seen."""
        now = sample(pid)
        if now is None:
            return False
        first = self._first.setdefault(pid, now)
        if _OWN_SLEEP.search(wait_channel(pid)):
            self._sleeping.add(pid)
        return pid not in self._sleeping and (now.at_s - first.at_s < SPAN_S or waits_for_lock(first, now))

    def forget(self, pid: int) -> None:
        """Forget the process: it beats again, or is gone."""
        self._first.pop(pid, None)
        self._sleeping.discard(pid)


def waits_for_lock(before: Sample, now: Sample) -> bool:
    """Return whether a thread woke up often between two samples and did next to nothing. Pure."""
    span_s = now.at_s - before.at_s
    return now.wakes - before.wakes >= WAKES_PER_S_MIN * span_s and now.cpu_s - before.cpu_s <= CPU_SHARE_MAX * span_s


def sample(pid: int) -> Sample | None:
    """Return the main thread's processor time and voluntary waits; None where the system does not show them."""
    thread = Path(f"/proc/{pid}/task/{pid}")
    with contextlib.suppress(OSError, ValueError, IndexError):
        at_s = time.monotonic()
        fields = (thread / "stat").read_text().rpartition(")")[2].split()
        wakes = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (thread / "status").read_text(), re.MULTILINE)
        if wakes is not None:
            return Sample(at_s, (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, int(wakes[1]))
    return None


def wait_channel(pid: int) -> str:
    """Return the kernel function that the main thread waits in; empty if that is not shown."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/wchan").read_text()
    return ""
