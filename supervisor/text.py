"""Text for people: counts, durations, exits, errors and suggestions, in the log, on the terminal and over HTTP."""

import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

#: Package -> the extra that installs it.
_EXTRAS = {"sqlalchemy": "sqlalchemy", "aiosqlite": "sqlalchemy", "opentelemetry": "otel", "sentry_sdk": "sentry"}
_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86400
#: The text of an error may quote a whole body; of a longer one, the beginning and the end are kept.
TEXT_CHARS_MAX = 16_000


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

    words = list(allowed)
    same = [one for one in words if one.lower() == word.lower()]
    close = same or get_close_matches(word, words, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def install_hint(error: ImportError) -> str:
    """Return `: pip install '...'` when an extra of ours installs the missing package, else an empty string."""
    extra = _EXTRAS.get(error.name or "")
    return f": pip install 'redis-streams-supervisor[{extra}]'" if extra else ""


def error_summary(error: BaseException) -> str:
    """Return an exception as one line of limited length, for logs and dead letters."""
    return shortened(_summary(error))


def _summary(error: BaseException) -> str:
    text = " ".join(error_text(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def shortened(text: str) -> str:
    """Return the beginning and the end of a text that is too long for a line of the log or a dead letter's reason."""
    left_out = len(text) - TEXT_CHARS_MAX
    if left_out <= 0:
        return text
    half = TEXT_CHARS_MAX // 2
    return f"{text[:half]} ... ({left_out:,} characters are left out) ... {text[-half:]}"


def public_summary(error: BaseException) -> str:
    """Return an exception as one line without the content of a message, which may be private: for the log."""
    return shortened(_without_content(_summary(error), error))


def public_text(text: str, error: BaseException) -> str:
    """Return a text that quotes the exception's, without the content of a message."""
    own, public = error_text(error), _public(error)
    return (
        text.replace(error_summary(error), public_summary(error)).replace(shortened(own), public).replace(own, public)
    )


def public_traceback(error: BaseException) -> str:
    """Return an exception's traceback without the content of a message."""
    return shortened(_without_content("".join(traceback.format_exception(error)).rstrip(), error))


def _without_content(text: str, error: BaseException) -> str:
    for one in related_errors(error):
        own, public = error_text(one), _public(one)
        if own != public:
            for shown in (own, " ".join(own.split())):
                text = text.replace(shown, public)
            # In the traceback of a group its lines are indented.
            for line in own.splitlines():
                if "input_value=" in line:
                    text = text.replace(line.strip(), "(input not shown)")
    return text


def _public(error: BaseException) -> str:
    """Return the text of an exception; of one that quotes what is wrong, only where it is and of which kind."""
    public: str | None = getattr(error, "public", None)
    if public is not None:
        return public
    if type(error).__module__.startswith("pydantic") and callable(errors := getattr(error, "errors", None)):
        problems = errors(include_url=False, include_context=False, include_input=False)
        places = ", ".join(f"{'.'.join(map(str, one['loc'])) or 'value'} ({one['type']})" for one in problems[:5])
        return f"{getattr(error, 'title', 'value')}: {places}"
    return error_text(error)


def related_errors(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception, those that it holds as a group, and those that it was raised from."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def error_text(error: BaseException) -> str:
    """Return the text of an exception; empty when its `__str__` fails."""
    try:
        return str(error)
    except Exception:  # its own __str__ is broken
        return ""


def decoded(value: bytes | str) -> str:
    """Return bytes as text, in which what is not UTF-8 is escaped; text is returned as it is."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def path_text(path: object) -> str:
    """Return a path for people and for JSON: what is not text or would break a line is escaped."""
    return printable(str(path).encode(errors="surrogateescape").decode(errors="backslashreplace"))


def is_unicode(text: str) -> bool:
    """Return whether the text has a form in UTF-8; lone surrogates have none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str, *, keep: str = "") -> str:
    """Return the text with control characters escaped: a message from anybody must not control the terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)


def fault_text(error: Exception) -> str:
    """Return what is wrong with a text that can't be read or written. For a long integer, Python names a setting."""
    if "integer string conversion" in str(error):
        return f"an integer has more than {sys.get_int_max_str_digits():,} digits"
    return str(error)
