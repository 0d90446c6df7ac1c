"""What children print: the arbiter reads it from pipes and writes it to its own stdout and stderr, in whole lines.

1. A child's descriptors 1 and 2 are pipes that the arbiter always reads. So nothing that a handler, a library in C or
   a program that it starts may print can wait for the reader of the pool's output, or fail.
2. Each line gets the name of its child: `worker 3 | hello` where the log is readable text, else a JSON object.
3. The pool's output takes what it can at once. A burst waits in a buffer of limited size; the rest is dropped and
   counted, as the log does it.
"""

import json
import os
import selectors
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from supervisor.arbiter.loop import Loop
from supervisor.standard_streams import PIECE_BYTES, STDERR, STDOUT, Output, dropped_note

#: What is read at once: other events of the loop do not wait long for a child that prints a lot.
READ_BYTES = 16_384
#: A longer line is cut.
LINE_BYTES_MAX = 65_536
BUFFER_BYTES_MAX = 262_144
#: How long the reader of the last lines may take at the end of the pool.
LAST_S = 0.5
RETRY_S = 0.01
_NAMES = {STDOUT: "stdout", STDERR: "stderr"}


@dataclass(slots=True)
class ChildOutput:
    """A pipe that a child writes into: which child, and to which descriptor of the pool its lines go."""

    read_fd: int
    #: STDOUT or STDERR.
    to: int
    #: As readable text names it: `worker 3`.
    name: str
    #: As JSON names it: `slot`, `worker` or `service`, and `pid`.
    fields: dict[str, Any]
    #: The beginning of a line whose end was not read yet; one character for each byte.
    rest: str = ""


@dataclass(frozen=True, slots=True)
class Pipes:
    """The pipes of a child that is about to start: (read end, write end, STDOUT or STDERR)."""

    ends: list[tuple[int, int, int]]

    def write_end(self, to: int) -> int:
        """Return the child's end for STDOUT or STDERR; one pipe may be for both."""
        return next((write_fd for _, write_fd, target in self.ends if target == to), self.ends[0][1])

    def close(self) -> None:
        """Close all ends."""
        for read_fd, write_fd, _ in self.ends:
            os.close(read_fd)
            os.close(write_fd)


class Outputs:
    """The pipes of all children."""

    def __init__(self, loop: Loop, *, human: bool, inherited: Iterable[dict[str, Any]] = ()) -> None:
        """`human`: lines are readable text. `inherited` is the `state` of an earlier image of this process."""
        self._loop = loop
        self._human = human
        self._sinks = {STDOUT: _Sink(loop, STDOUT), STDERR: _Sink(loop, STDERR)}
        # One pipe for both keeps the order in which a child writes to them.
        self._targets = [STDERR] if os.path.sameopenfile(STDOUT, STDERR) else [STDOUT, STDERR]
        self._by_fd: dict[int, ChildOutput] = {}
        for state in inherited:
            self._watch(ChildOutput(**state))

    def open(self) -> Pipes | None:
        """Create the pipes of a child; None if there is no free descriptor: then the child keeps the arbiter's."""
        pipes = Pipes([])
        try:
            for target in self._targets:
                pipes.ends.append((*os.pipe(), target))
        except OSError:
            pipes.close()
            return None
        return pipes

    def started(self, pipes: Pipes, name: str, fields: dict[str, Any]) -> None:
        """Read what this child writes, until it and all that it has started are gone."""
        for read_fd, write_fd, target in pipes.ends:
            os.close(write_fd)
            os.set_blocking(read_fd, False)
            self._watch(ChildOutput(read_fd, target, name, fields))

    def fds(self) -> list[int]:
        """Return the read ends; a forked child closes them."""
        return list(self._by_fd)

    def state(self) -> list[dict[str, Any]]:
        """Return what the next image of this process needs."""
        for sink in self._sinks.values():
            sink.finish()
        return [asdict(output) for output in self._by_fd.values()]

    def finish(self) -> None:
        """Write what children that are gone have left. A process that one of them left behind may print on and on."""
        until_s = time.monotonic() + LAST_S
        for output in list(self._by_fd.values()):
            while self._read(output) and time.monotonic() < until_s:
                pass
        for sink in self._sinks.values():
            sink.finish()

    def _watch(self, output: ChildOutput) -> None:
        def ready(_events: int) -> None:
            self._read(output)

        self._by_fd[output.read_fd] = output
        self._loop.watch(output.read_fd, selectors.EVENT_READ, ready)

    def _read(self, output: ChildOutput) -> bool:
        """Read once; return False if nothing was there, or at the end of the pipe."""
        try:
            chunk = os.read(output.read_fd, READ_BYTES)
        except BlockingIOError:
            return False
        *lines, output.rest = (output.rest + chunk.decode("latin-1")).split("\n")
        if output.rest and (len(output.rest) > LINE_BYTES_MAX or not chunk):
            lines.append(output.rest)
            output.rest = ""
        if lines:
            self._sinks[output.to].write(self._formatted(output, lines))
        if not chunk:
            self._loop.unwatch(output.read_fd)
            os.close(output.read_fd)
            del self._by_fd[output.read_fd]
        return bool(chunk)

    def _formatted(self, output: ChildOutput, lines: list[str]) -> Iterator[bytes]:
        texts = (line.encode("latin-1").decode(errors="backslashreplace").removesuffix("\r") for line in lines)
        if self._human:
            for text in texts:
                yield f"{output.name} | {text}\n".encode()
            return
        fields = {**output.fields, "to": _NAMES[output.to]}
        own = json.dumps(fields)[1:-1]
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        for text in texts:
            line = f'{{"timestamp": "{at}", "level": "info", "event": "output", "text": {json.dumps(text)}, {own}}}'
            yield (_with_fields(text, fields) or line).encode() + b"\n"


def _with_fields(text: str, fields: dict[str, Any]) -> str:
    """Add the fields that a JSON object lacks, as a service or a project's logging writes it; empty for other lines."""
    if not (text.startswith("{") and text.endswith("}") and text[1:-1].strip()):
        return ""
    try:
        known = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    lacking = {name: value for name, value in fields.items() if name not in known}
    return f"{text[:-1]}, {json.dumps(lacking)[1:-1]}}}" if lacking else text


class _Sink:
    """A descriptor of the pool's own, with a buffer for bursts."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._output = Output(fd)
        self._waiting = bytearray()
        self._dropped = 0

    def write(self, lines: Iterable[bytes]) -> None:
        """Write whole lines, later if need be; drop them if too much waits already."""
        for line in lines:
            if len(self._waiting) + len(line) > BUFFER_BYTES_MAX:
                self._dropped += 1
                continue
            self._waiting += line
            if self._dropped:
                self._waiting += dropped_note(self._dropped)
                self._dropped = 0
        self._flush()

    def finish(self) -> None:
        """Wait for a slow reader, but not long."""
        until_s = time.monotonic() + LAST_S
        while self._waiting and time.monotonic() < until_s:
            time.sleep(RETRY_S)
            self._flush()

    def _flush(self, _events: int = 0) -> None:
        try:
            while self._waiting:
                end = self._waiting.rfind(b"\n", 0, PIECE_BYTES) + 1 or PIECE_BYTES
                del self._waiting[: self._output.send(bytes(self._waiting[:end]))]
            self._loop.unwatch(self._output.fd)
        except BlockingIOError:
            self._loop.watch(self._output.fd, selectors.EVENT_WRITE, self._flush)
        except OSError:  # the reader is gone, or its disk is full
            self._dropped += self._waiting.count(b"\n")
            self._waiting.clear()
            self._loop.unwatch(self._output.fd)
