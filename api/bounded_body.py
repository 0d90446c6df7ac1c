"""The body of a request, within its limit: counted while it comes, and unpacked if it is gzip.

A small gzip body may become gigabytes. It is unpacked in small pieces, and no further than the limit.
"""

import asyncio
import zlib
from collections.abc import Mapping

from starlette.types import Message, Receive

from .problems import Problem

#: For zlib: a gzip header and trailer.
_GZIP = 31
#: Unpacked bytes in one piece: about a millisecond of work.
_PIECE = 256 * 1024
_ENCODINGS = (b"gzip", b"x-gzip")


def check_length(headers: Mapping[bytes, bytes], most: int) -> Problem | None:
    """Return the problem of a body that is known to be too large or packed in a way that is not understood."""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > most:
        return too_large(most)
    encoding = _encoding(headers)
    if encoding and encoding not in _ENCODINGS:
        return Problem(
            "media-type",
            f"Content-Encoding must be gzip or absent, not {encoding.decode(errors='replace')}",
            headers={"Accept-Encoding": "gzip"},
        )
    return None


def bounded(receive: Receive, headers: Mapping[bytes, bytes], most: int) -> Receive:
    """Return `receive` for the plain body, which raises Problem as soon as there are more than `most` bytes."""
    counted = _counted(receive, most)
    return _counted(_Gunzip(counted).receive, most) if _encoding(headers) else counted


def too_large(most: int) -> Problem:
    """Return the problem of a body with more bytes."""
    return Problem("body-too-large", f"at most {most} bytes", headers={"Connection": "close"})


def _encoding(headers: Mapping[bytes, bytes]) -> bytes:
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    return b"" if encoding == b"identity" else encoding


def _counted(receive: Receive, most: int) -> Receive:
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise too_large(most)
        return message

    return counted


class _Gunzip:
    """Unpacks a gzip body of one or more members."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._member = zlib.decompressobj(_GZIP)
        #: What has come and is not unpacked yet.
        self._packed = b""
        self._more = True
        #: The member may have more to give without further bytes.
        self._full = False

    async def receive(self) -> Message:
        """Return the next plain piece."""
        while not self._packed and not self._full and self._more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._packed, self._more = message.get("body", b""), message.get("more_body", False)
        await asyncio.sleep(0)  # a body that has arrived as a whole must not hold up other requests
        piece = self._unpack()
        done = not (self._packed or self._full or self._more)
        if done and not self._member.eof:
            raise _not_gzip("it ends too early")
        return {"type": "http.request", "body": piece, "more_body": not done}

    def _unpack(self) -> bytes:
        if self._member.eof and self._packed:
            self._member = zlib.decompressobj(_GZIP)
        try:
            piece = self._member.decompress(self._packed, _PIECE)
        except zlib.error as error:
            raise _not_gzip(str(error)) from None
        self._packed = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        self._full = len(piece) == _PIECE and not self._member.eof
        return piece


def _not_gzip(why: str) -> Problem:
    return Problem("bad-request", f"the body is not gzip: {why}", headers={"Connection": "close"})
