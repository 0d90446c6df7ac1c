"""Packs and slices what is too large for one iteration of the event loop; other tasks run in between."""

import asyncio
from collections.abc import Iterator, Sequence

from supervisor.broker.command_connection import pack_command

#: Other tasks get a turn after this many messages or arguments of a command.
AT_ONCE = 200
#: About the size of a piece or a slice.
_SLICE_BYTES = 256 * 1024


async def pack_arguments(arguments: Sequence[str | bytes | int]) -> list[bytes]:
    """Return arguments in Redis's wire format in pieces, without the line with their number."""
    pieces: list[bytes] = []
    begin = size = 0
    for end, argument in enumerate(arguments, 1):
        size += 0 if isinstance(argument, int) else len(argument)
        if end == len(arguments) or end - begin == AT_ONCE or size >= _SLICE_BYTES:
            pieces.append(_without_count(pack_command(tuple(arguments[begin:end]))))
            begin, size = end, 0
            if end < len(arguments):
                await asyncio.sleep(0)
    return pieces


def script_call(name: str, script: str, count: int, arguments: list[bytes]) -> list[bytes]:
    """Return the pieces of a script's call (EVAL or EVALSHA) with `count` packed arguments."""
    head = b"*%d\r\n%b" % (count + 2, _without_count(pack_command((name, script))))
    return [head + arguments[0], *arguments[1:]] if arguments else [head]


def slices(pieces: list[bytes]) -> Iterator[list[bytes]]:
    """Yield the pieces in slices."""
    size = start = 0
    for end, piece in enumerate(pieces[:-1], 1):
        size += len(piece)
        if size >= _SLICE_BYTES:
            yield pieces[start:end]
            start, size = end, 0
    yield pieces[start:]


def _without_count(packed: bytes) -> bytes:
    return packed[packed.index(b"\n") + 1 :]
