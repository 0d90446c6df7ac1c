"""What `deliver` returns: how the delivery of a message ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Emitted:
    """A message that a handler has published, or returned as `Emit`."""

    stream: str
    id: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Done:
    """The message is acked."""

    #: What was published meanwhile, in the order of ids.
    emitted: tuple[Emitted, ...] = ()


@dataclass(frozen=True, slots=True)
class Retried:
    """The message is handled again after `after_s` seconds, which a pool varies by 20 % unless the handler chose it."""

    after_s: float
    #: What the handler raised.
    error: BaseException
    emitted: tuple[Emitted, ...] = ()


@dataclass(frozen=True, slots=True)
class Dead:
    """The message becomes a dead letter."""

    reason: str
    #: What the handler raised.
    error: BaseException | None = field(default=None, compare=False)
    emitted: tuple[Emitted, ...] = ()


Outcome = Done | Retried | Dead
