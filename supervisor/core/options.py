"""The options that hold for one handler, settled once from the decorator, config.toml and defaults."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from supervisor.settings.model import HandlerOptions, Settings

#: A field's name, or a function of the message.
FieldOrFunction = str | Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Options:
    """How the messages of one (stream, group) are read, run and retried."""

    start: str
    batch_size: int
    concurrency: int
    timeout_s: float
    max_deliveries: int
    retry_base_s: float
    retry_max_s: float
    max_crashes: int
    hold_ms: int
    block_ms: int
    max_waiting: int
    circuit_breaker: bool
    run_in: str
    max_tasks: int
    #: A field's name or a function of the message; empty: none.
    key: FieldOrFunction = ""
    per_key: int = 1
    on_dead: str = "skip"
    #: 0: no limit.
    group_concurrency: int = 0
    #: Empty: no limit.
    rate: str = ""
    rate_key: FieldOrFunction = ""
    rate_cost: FieldOrFunction = ""

    @property
    def has_turns(self) -> bool:
        """Whether messages may have to wait for others of the group, on whichever worker."""
        return bool(self.key or self.group_concurrency)

    @property
    def is_limited(self) -> bool:
        """Whether some limit holds over the whole group."""
        return self.has_turns or bool(self.rate)


#: The value of `run_in` for a process pool.
PROCESS = "process"
#: The value of `on_dead` for a key that stops after a dead letter.
HALT = "halt"
#: What `@handler(...)` and `[stream."..."]` may set.
HANDLER_OPTIONS = tuple(HandlerOptions.declared)
#: Those of them that `@handler(...)` may give a function of the message.
FUNCTION_OPTIONS = ("key", "rate_key", "rate_cost")
#: Options that have no meaning without another one.
NEEDS = {"per_key": "key", "on_dead": "key", "rate_key": "rate", "rate_cost": "rate"}


def resolve(settings: Settings, stream: str, group: str, declared: Mapping[str, Any]) -> Options:
    """Return the options of one handler: config for the group, config for the stream, decorator, defaults.

    The operator's config.toml wins over the decorator, since it knows the place where this runs.
    """
    chosen: dict[str, Any] = {}
    for field in fields(Options):
        section = settings.retry if hasattr(settings.retry, field.name) else settings.consumer
        chosen[field.name] = getattr(section, field.name)
    chosen.update(declared)
    override = settings.stream.get(stream)
    for source in (override, override.group.get(group) if override else None):
        given = source.as_dict() if source else {}
        chosen.update({name: given[name] for name in HANDLER_OPTIONS if name in given})
    return Options(**chosen)
