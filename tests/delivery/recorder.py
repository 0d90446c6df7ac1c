"""Handlers that record each start and each end in files that survive their worker, and a reader of these files.

Each process has a file of its own for each group, `runs.<group>.<pid>` in the project's folder. A
line is `<n> <message id> <consumer> start|end <monotonic ns>`, written in one call with O_APPEND: it is
there when the process is killed right after, and no fault of Redis can take it.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.delivery.checker import Effect

#: The head of the cases' handlers: `with run(message): ...` records the start and, unless it raises, the end.
PRELUDE = """
import asyncio, os, signal, time
from supervisor import BatchError, Message, Reject, Retry, context, handler

_files = {}

def note(message, what):
    key = (os.getpid(), message.group)
    fd = _files.get(key)
    if fd is None:
        fd = _files[key] = os.open(f"runs.{key[1]}.{key[0]}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    line = f"{message.fields['n']} {message.id} {context().worker} {what} {time.monotonic_ns()}\\n"
    os.write(fd, line.encode())

class run:
    def __init__(self, message):
        self.message = message

    def __enter__(self):
        note(self.message, "start")

    def __exit__(self, kind, error, trace):
        if kind is None:
            note(self.message, "end")

def first(name):
    "True for the first caller, in whatever process."
    try:
        os.close(os.open(f"first.{name}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
"""

#: Each message names the time for which its handler sleeps.
PLAIN = """
@handler("events", group="workers")
async def handle(message: Message) -> None:
    with run(message):
        await asyncio.sleep(float(message.fields["work_ms"]) / 1000)
"""


def handlers(body: str) -> str:
    """The text of handlers.py."""
    return PRELUDE + textwrap.dedent(body)


@dataclass(frozen=True, slots=True)
class Line:
    """A start or an end."""

    n: int
    entry: str
    pid: int
    consumer: str
    what: str
    at_ns: int


@dataclass(frozen=True)
class Recording:
    """All that the handlers of one group did, oldest first."""

    lines: tuple[Line, ...]

    @property
    def starts(self) -> list[Effect]:
        """Each start of a handler."""
        return self._only("start")

    @property
    def ends(self) -> list[Effect]:
        """Each end of a handler that returned."""
        return self._only("end")

    def pids(self) -> dict[str, list[int]]:
        """Consumer -> the processes that ran something under its name, in order: its incarnations."""
        found: dict[str, list[int]] = {}
        for line in self.lines:
            known = found.setdefault(line.consumer, [])
            if line.pid not in known:
                known.append(line.pid)
        return found

    def of(self, n: int) -> list[Line]:
        """What happened to one message."""
        return [line for line in self.lines if line.n == n]

    def _only(self, what: str) -> list[Effect]:
        return [Effect(line.n, line.at_ns) for line in self.lines if line.what == what]


def recording(folder: Path, group: str = "workers") -> Recording:
    """Read what was written so far."""
    lines = []
    for path in folder.glob(f"runs.{group}.*"):
        pid = int(path.suffix[1:])
        for line in path.read_text().rpartition("\n")[0].splitlines():  # the last one may be half written
            n, entry, consumer, what, at_ns = line.split(" ")
            lines.append(Line(int(n), entry, pid, consumer, what, int(at_ns)))
    return Recording(tuple(sorted(lines, key=lambda line: line.at_ns)))
