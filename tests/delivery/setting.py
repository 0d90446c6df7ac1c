"""The settings of a delivery case: its server, its pool and its load."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.delivery.open_loop_producer import Fields, no_more_fields
from tests.delivery.recorder import PLAIN, handlers

STREAM, GROUP, HOST = "events", "workers", "case"
RATE = 1000.0
#: Attempts of one worker that a kill may undo: its handler's `concurrency`, and a batch that is done and not yet acked.
IN_HAND_MAX = 200
#: At this rate each of four workers has about ten such messages in hand at any moment.
LONG_WORK_MS = 40.0


@dataclass
class Setting:
    """What a case changes."""

    body: str = PLAIN
    #: Lines of [pool], and whole other sections.
    pool: str = ""
    more: str = ""
    workers: int = 4
    rate: float = RATE
    work_ms: float = 2.0
    fields: Fields = no_more_fields
    groups: Sequence[str] = (GROUP,)
    #: The server has to survive a kill.
    appendonly: bool = False
    #: It listens on a port too, and that is where the pool and the load find it.
    tcp: bool = False
    server_options: tuple[str, ...] = ()
    api: bool = False
    env: dict[str, str] | None = None
    #: How long the load lasts, instead of the session's `--load-s`.
    load_s: float | None = None

    @property
    def handlers(self) -> str:
        """The text of handlers.py."""
        return handlers(self.body)

    @property
    def config(self) -> str:
        """The text of config.toml; the pool's name in consumer names is fixed."""
        return f'[pool]\nhost = "{HOST}"\n{self.pool}\n{self.more}\n'
