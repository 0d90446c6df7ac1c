"""What a person sees when the pool is up: one screen on stderr; as one line of JSON where nobody looks."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supervisor.log import has_colours, is_human
from supervisor.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.handling.load import HandlerSpec
    from supervisor.settings.load import Loaded

BOLD, DIM, GREEN, YELLOW, PLAIN = "\033[1m", "\033[2m", "\033[32m", "\033[33m", "\033[0m"


@dataclass(frozen=True, slots=True)
class Facts:
    """What has come of the start."""

    #: `{"url", "version", "durability"}`
    redis: dict[str, Any]
    embedded: bool
    ready: int
    workers: int
    #: From the arbiter's start until the last worker was READY.
    boot_ms: int
    api: bool
    #: Nothing is READY yet, and the pool leaves by itself.
    burst: bool = False


def show(loaded: Loaded, specs: Sequence[HandlerSpec], facts: Facts, log: Any) -> None:
    """Say what was started."""
    settings = loaded.settings
    if not is_human(settings):
        log.info(
            "started",
            version=__version__,
            config=str(loaded.path) if loaded.path else None,
            redis=facts.redis,
            embedded=facts.embedded,
            groups=[f"{spec.stream} {spec.group}" for spec in specs],
            ready=None if facts.burst else facts.ready,
            workers=facts.workers,
            boot_ms=None if facts.burst else facts.boot_ms,
            burst=facts.burst or None,
            api=f"http://{settings.api.bind}" if facts.api else None,
            state_dir=str(settings.state_dir),
        )
        return
    text = "\n".join(lines(loaded, specs, facts, colours=has_colours())) + "\n"
    with contextlib.suppress(OSError):  # nobody looks
        os.write(sys.stderr.fileno(), text.encode())


def lines(loaded: Loaded, specs: Sequence[HandlerSpec], facts: Facts, *, colours: bool) -> list[str]:
    """The screen."""

    def paint(code: str, text: str) -> str:
        return f"{code}{text}{PLAIN}" if colours else text

    def line(word: str, text: str) -> str:
        return f"  {paint(DIM, f'{word:<9}')} {text}"

    settings = loaded.settings
    redis = facts.redis
    durability = redis.get("durability", "?")
    warn = durability == "none"
    kept = "keeps nothing over a restart" if warn else f"durability {durability}"
    ok = facts.ready == facts.workers
    shown = [
        paint(BOLD, f"supervisor {__version__}"),
        line("config", str(loaded.path) if loaded.path else "none, all defaults (`supervisor init` makes one)"),
        line(
            "redis",
            f"{redis.get('version', '?')}{' (embedded)' if facts.embedded else ''} at {redis.get('url', '?')}, "
            + paint(YELLOW if warn else PLAIN, kept),
        ),
    ]
    streams: dict[str, list[str]] = {}
    for spec in specs:
        streams.setdefault(spec.stream, []).append(spec.group)
    shown += [line("stream", f"{stream} → {', '.join(groups)}") for stream, groups in streams.items()]
    ready = paint(GREEN if ok else YELLOW, f"{facts.ready}/{facts.workers} ready") + f" in {facts.boot_ms} ms"
    shown.append(line("workers", f"{facts.workers}, until nothing is left" if facts.burst else ready))
    if facts.api:
        shown.append(line("http", f"http://{settings.api.bind}  (docs at /docs, health at /readyz)"))
    shown += [line("state", str(settings.state_dir)), line("", "Ctrl-C drains and leaves")]
    return shown
