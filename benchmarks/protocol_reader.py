"""What `blocking.c` does, as a bare protocol on uvloop: the least that a Python program with an event loop takes.

    python -m benchmarks.protocol_reader ADDRESS STREAM GROUP CONSUMER COUNT ENTRIES

It takes the arguments of that program and prints the same.
"""

import asyncio
import sys
import time
from array import array
from typing import Any

import hiredis
import uvloop

from benchmarks.arrivals import connect

#: Its annotation allows tuples of one word only.
pack: Any = hiredis.pack_command


class Reading(asyncio.Protocol):
    """Reads a group, and acks each batch in the same write as the next read."""

    def __init__(self, words: list[str], done: "asyncio.Future[None]") -> None:
        _, self._stream, self._group, consumer, count, entries = words
        head = ("XREADGROUP", "GROUP", self._group, consumer, "COUNT", count)
        self._read = pack((*head, "BLOCK", "0", "STREAMS", self._stream, ">"))
        self._wanted = int(entries)
        self._done = done
        self._replies = hiredis.Reader()
        self._transport: Any = None
        #: Nanoseconds, in the order of arrival.
        self.latencies = array("q")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first read."""
        self._transport = transport
        self._transport.write(self._read)

    def data_received(self, data: bytes) -> None:
        """Note when entries have arrived."""
        now_ns = time.monotonic_ns()
        self._replies.feed(data)
        while (reply := self._replies.gets()) is not False:
            if isinstance(reply, Exception):
                self._done.set_exception(reply)
                return
            if not isinstance(reply, list):  # the count of an ack
                continue
            entries = reply[0][1]
            self.latencies.extend(now_ns - int(fields[1]) for _, fields in entries)
            ack = pack(("XACK", self._stream, self._group, *(entry_id for entry_id, _ in entries)))
            self._transport.write(ack + self._read)
        if len(self.latencies) >= self._wanted and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail before all entries have arrived."""
        if not self._done.done():
            self._done.set_exception(error or ConnectionError("the server closed the connection"))


async def main(words: list[str]) -> None:
    """Read until all entries have arrived, and print as the C program does."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    _, reading = await loop.create_connection(lambda: Reading(words, done), sock=connect(words[0]))
    await done
    sys.stdout.buffer.write(reading.latencies.tobytes())


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
