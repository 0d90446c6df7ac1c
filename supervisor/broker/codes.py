"""Redis's own word for what it refuses: OOM, READONLY, WRONGTYPE, LOADING and so on."""

from __future__ import annotations

import re

from redis import exceptions

UNREACHABLE = "UNREACHABLE"
#: redis-py cuts the word off the errors that it has a class for.
_CUT: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.AuthenticationError, "NOAUTH"),
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.ExecAbortError, "EXECABORT"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.MovedError, "MOVED"),
    (exceptions.AskError, "ASK"),
    (exceptions.TryAgainError, "TRYAGAIN"),
)
_WORD = re.compile(r"-?([A-Z][A-Z0-9_]+)(?= |$)")
_IN_SCRIPT = re.compile(r"\b(OOM|WRONGTYPE|READONLY|MISCONF|NOREPLICAS|NOPERM)\b")


def code_of(error: BaseException) -> str:
    """The word, UNREACHABLE when the server could not be asked, ERR when it has none."""
    for kind, code in _CUT:
        if isinstance(error, kind):
            return code
    if not isinstance(error, exceptions.ResponseError):
        return UNREACHABLE
    text = str(error)
    # Before Redis 7 a script's error is wrapped: `ERR Error running script ...: -OOM command not allowed`.
    inside = _IN_SCRIPT.search(text)
    found = _WORD.match(text)
    if found and found[1] != "ERR":
        return found[1]
    return inside[1] if inside else "ERR"
