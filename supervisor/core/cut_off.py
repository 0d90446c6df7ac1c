"""What it means for people that a worker can't read a group, or can't settle its messages. Pure."""

import struct

#: A consumer that can't read or settle for this long is reported.
CUT_OFF_S = 3.0
#: Codes of errors are in capitals.
_SETTLING = "s"
#: What a reason names that is about settling.
SETTLED = "for acks, retries or dead letters"
_MEANINGS = {
    "UNREACHABLE": "Redis does not answer",
    "WRONGTYPE": "the key is not a stream",
    "NOPERM": "the Redis user lacks a right; README.md lists them",
    "NOAUTH": "Redis refuses the credentials",
    "LOADING": "Redis loads its data",
    "BUSY": "a script keeps Redis busy",
    "OOM": "Redis is full",
    "READONLY": "the server is a replica",
    "CLUSTERDOWN": "the cluster is down",
    "MASTERDOWN": "the replica has lost its master",
    "NOGROUP": "the group is missing",
}


def pack_code(code: str) -> tuple[int, int]:
    """Return the code of an error as two words for shared memory."""
    first, rest = struct.unpack("=2Q", code.encode(errors="replace")[:16].ljust(16, b"\0"))
    return first, rest


def unpack_code(first: int, rest: int) -> str:
    """Return the code in these words, or ERR if they are garbage."""
    text = struct.pack("=2Q", first, rest).rstrip(b"\0")
    return text.decode() if text.isalnum() and text.isascii() else "ERR"


def settling(code: str) -> str:
    """Return the code of an error for which nothing can be settled."""
    return _SETTLING + code


def reason_of(code: str) -> str:
    """Return the code of a Redis error with its meaning."""
    if code.startswith(_SETTLING):
        code = code.removeprefix(_SETTLING)
        named = {**_MEANINGS, "WRONGTYPE": "one of the pool's keys has another type; the log names it"}
        meaning = named.get(code, "Redis refuses them; the log has its words")
        return f"{code} {SETTLED}: {meaning}"
    return f"{code}: {_MEANINGS.get(code, 'Redis refuses the read; the log has its words')}"
