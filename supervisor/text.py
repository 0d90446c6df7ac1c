"""Text for people: counts, durations, exits, errors and suggestions, in the log, on the terminal and over HTTP."""

import signal
from collections.abc import Iterable, Mapping
from typing import Any

_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86400


def counted(number: int, noun: str) -> str:
    """Return `1 worker`, `2 workers`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration_text(seconds: float | None) -> str:
    """Return `45 s`, `3 m 20 s`, `2 h 5 m` or `4 d 3 h`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 10:  # noqa: PLR2004 - a decimal is still useful there
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} m {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} m"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def exit_text(left: Mapping[str, Any] | None) -> str:
    """Return how a child exited, from its entry in `status`: `SIGKILL after 1.5 s`, `exit 3 after 2 m 5 s`, or `-`."""
    if left is None:
        return "-"
    what = left["reason"]
    if what == "signal" and left["signal"] is not None:
        what = signal_name(left["signal"])
    elif what == "exit":
        what = f"exit {left['code']}"
    return f"{what} after {duration_text(left['uptime_s'])}"


def signal_name(number: int) -> str:
    """Return `SIGKILL`, or `signal 63` for a signal without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` when a word in `allowed` is close to `word`, else an empty string."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def error_summary(error: BaseException) -> str:
    """Return an exception as one line, for logs and dead letters."""
    text = " ".join(error_text(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def error_text(error: BaseException) -> str:
    """Return the text of an exception; empty when its `__str__` fails."""
    try:
        return str(error)
    except Exception:  # its own __str__ is broken
        return ""


def path_text(path: object) -> str:
    """Return a path for people and for JSON: what is not text or would break a line is escaped."""
    return printable(str(path).encode(errors="surrogateescape").decode(errors="backslashreplace"))


def printable(text: str, *, keep: str = "") -> str:
    """Return the text with control characters escaped: a message from anybody must not control the terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)
