"""What is shown when the pool is up: a summary on stderr for people, one JSON log line otherwise."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from supervisor._version import __version__
from supervisor.arbiter.spawn import Specs
from supervisor.http_bind import url_of
from supervisor.log import has_colours, is_human, stderr
from supervisor.settings.load import Loaded


@dataclass(frozen=True, slots=True)
class StartupReport:
    """The result of a start."""

    loaded: Loaded
    specs: Specs
    #: `{"url", "version", "durability"}`
    redis: dict[str, Any]
    embedded: bool
    ready: int
    workers: int
    #: From the arbiter's start until now.
    boot_ms: int
    #: The number of processes of the HTTP service.
    api: int
    #: The report comes before the first worker is READY, because the pool may exit soon.
    burst: bool = False

    def show(self, log: Any) -> None:
        """Write the report to stderr or to the log."""
        settings = self.loaded.settings
        if is_human(settings):
            stderr().write("".join(f"{line}\n" for line in self._lines(colours=has_colours())).encode())
            return
        log.info(
            "started",
            version=__version__,
            config=str(self.loaded.path) if self.loaded.path else None,
            redis=self.redis,
            embedded=self.embedded,
            groups=[f"{spec.stream} {spec.group}" for spec in self.specs],
            ready=None if self.burst else self.ready,
            workers=self.workers,
            boot_ms=None if self.burst else self.boot_ms,
            burst=self.burst or None,
            api=url_of(settings.api.bind) if self.api else None,
            state_dir=str(settings.state_dir),
        )

    def _lines(self, *, colours: bool) -> Iterator[str]:
        def style(text: str, **styles: Any) -> str:
            return click.style(text, **styles) if colours else text

        def line(label: str, text: str) -> str:
            return f"  {style(f'{label:<9}', dim=True)} {text}"

        settings, redis = self.loaded.settings, self.redis
        durability = redis.get("durability", "?")
        volatile = durability == "none"
        kept = style("loses its data at a restart", fg="yellow") if volatile else f"durability {durability}"
        yield style(f"supervisor {__version__}", bold=True)
        yield line("config", str(self.loaded.path or "none, all defaults (`supervisor init` creates one)"))
        embedded = " (embedded)" if self.embedded else ""
        yield line("redis", f"{redis.get('version', '?')}{embedded} at {redis.get('url', '?')}, {kept}")
        streams: dict[str, list[str]] = {}
        for spec in self.specs:
            streams.setdefault(spec.stream, []).append(spec.group)
        for stream, groups in streams.items():
            yield line("stream", f"{stream} → {', '.join(groups)}")
        colour = "green" if self.ready == self.workers else "yellow"
        ready = style(f"{self.ready}/{self.workers} ready", fg=colour) + f" in {self.boot_ms} ms"
        yield line("workers", f"{self.workers}, until no work is left" if self.burst else ready)
        if self.api:
            processes = f" ({self.api} processes)" if self.api > 1 else ""
            yield line("http", f"{url_of(settings.api.bind)}{processes}  (dashboard at /ui, docs at /docs)")
        yield line("state", str(settings.state_dir))
        yield line("", "Ctrl-C drains and stops")
