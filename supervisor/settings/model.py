"""The settings as one frozen, typed tree, with every default.

It says what exists, what it means and what is allowed. Where values come from (flags, environment,
config.toml) is `supervisor.settings.load`'s job.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from supervisor.settings import redis_url
from supervisor.settings.duration import DURATION, SECONDS_MAX, Duration

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

_NAME = "a name without spaces, colons and braces"
_START = 'an entry id such as "0" or "1700000000000-0", or "$" for new entries only'
_START_PATTERN = r"^(\$|\d+(-\d+)?)$"
_PORT = r"([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
_ROUTER = 'a module and the name of a router in it, such as "handlers.http:router"'
_ROUTER_PATTERN = r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$"
_BIND_PATTERN = rf"^(\[[0-9a-fA-F:.]+\]|[^:\s\[\]]+):{_PORT}$"


def _host_name() -> str:
    return re.sub(r"[\s:{}]+", "-", socket.gethostname()) or "localhost"


def _redis_url(url: str) -> str:
    if url:
        redis_url.parse(url)
    return url


class Section(BaseModel):
    """A table of config.toml: unknown keys are refused, values never change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RedisSettings(Section):
    """`[redis]`: where the streams live."""

    #: One server, a master that Sentinel names, or a cluster: see `settings.redis_url`; empty: a server of our own,
    #: kept in `state_dir`/redis.
    url: Annotated[str, AfterValidator(_redis_url)] = Field("", description=f"{redis_url.FORMS} or empty")
    #: How the embedded server syncs its append-only file.
    appendfsync: Literal["everysec", "always", "no"] = "everysec"
    #: How long to wait for a connection, and at boot for Redis to answer at all.
    connect_timeout_s: Seconds = 5.0


class PoolSettings(Section):
    """`[pool]`: the worker processes."""

    workers: Annotated[int, Field(ge=0, le=256)] = 8
    #: With `workers_max` set, the pool has between these many workers, as the backlog asks for.
    workers_min: Annotated[int, Field(ge=1, le=256)] = 1
    workers_max: Annotated[int, Field(ge=0, le=256)] = 0
    #: A backlog that would take longer calls for more workers.
    backlog_limit_s: Seconds = 10.0
    #: A worker is replaced when its own memory has grown by so many megabytes since it was READY; 0: never.
    recycle_growth_mb: Annotated[int, Field(ge=0)] = 0
    #: ... when it has done so many messages; 0: never.
    recycle_messages: Annotated[int, Field(ge=0)] = 0
    #: ... when it is so old; 0: never.
    recycle_age_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    #: This host's name in consumer names.
    host: str = Field(default_factory=_host_name, pattern=r"^[^\s:{}]+$", description=_NAME)
    #: Tells pools apart that run on one host.
    name: str = Field("", pattern=r"^[^\s:{}]*$", description=_NAME)
    #: The whole shutdown's deadline.
    drain_s: Seconds = 25.0
    #: A worker without a sign of life for this long is killed.
    beat_limit_s: Seconds = 5.0
    #: A worker that is not READY after this long is killed.
    boot_limit_s: Seconds = 15.0

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.workers_max and self.workers_max < self.workers_min:
            raise ValueError(f"workers_max = {self.workers_max} must be 0 or at least workers_min = {self.workers_min}")
        return self

    @property
    def first_workers(self) -> int:
        """How many to start with."""
        return min(max(self.workers, self.workers_min), self.workers_max) if self.workers_max else self.workers


class ConsumerSettings(Section):
    """`[consumer]`: how workers read and run; each handler and stream may differ."""

    #: Where a new group begins: "0" is the stream's first entry, "$" what comes after the group was made.
    start: str = Field("0", pattern=_START_PATTERN, description=_START)
    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 100
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 100
    timeout_s: Seconds = 60.0
    #: Threads per worker for plain `def` handlers.
    threads: Annotated[int, Field(ge=1, le=256)] = 16
    #: A worker reads ahead at most what it finishes within this time.
    hold_ms: Annotated[int, Field(ge=1, le=60_000)] = 100
    #: How long one read waits for entries at the server.
    block_ms: Annotated[int, Field(ge=10, le=60_000)] = 5_000
    #: Process deaths with one message alone in hand before it becomes a dead letter.
    max_crashes: Count = 3
    #: What a consumer of another program has held for longer is given to our workers; 0: never.
    claim_foreign_after_s: Annotated[float, Field(ge=0, le=SECONDS_MAX, allow_inf_nan=False)] = 0.0
    #: Entries that every group has settled are removed from the stream when they are older; 0: never.
    max_age: Duration = Field(0.0, description=DURATION)
    #: ... and while the stream has more entries than this; 0: never.
    max_length: Annotated[int, Field(ge=0)] = 0


class RetrySettings(Section):
    """`[retry]`: what happens to a message whose handler raised."""

    max_deliveries: Count = 5
    retry_base_s: Seconds = 1.0
    retry_max_s: Seconds = 300.0
    #: Messages of one group that may wait for a retry in one worker before it stops reading new ones.
    max_waiting: Count = 1_000


class ApiSettings(Section):
    """`[api]`: the HTTP service."""

    enabled: bool = True
    #: host:port. Anything but loopback needs `token`.
    bind: str = Field("127.0.0.1:8000", pattern=_BIND_PATTERN, description="host:port, with an IPv6 host in brackets")
    #: When set, every request but the probes must carry `Authorization: Bearer <token>`.
    token: str = ""
    #: A publish is answered within this time, with 503 when Redis has not stored it.
    produce_timeout_ms: Annotated[int, Field(ge=10, le=60_000)] = 200
    #: The largest request body.
    max_body_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024 * 1024
    #: The project's own FastAPI routers, imported in the process of the HTTP service only.
    routers: list[Annotated[str, Field(pattern=_ROUTER_PATTERN, description=_ROUTER)]] = Field(
        default_factory=list, description=_ROUTER
    )


class LogSettings(Section):
    """`[log]`: the supervisor's own log, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    #: auto: for people on a terminal, JSON lines otherwise.
    format: Literal["auto", "human", "json"] = "auto"


class HandlerOptions(Section):
    """The options of one handler, None where it leaves them to the sections above."""

    max_deliveries: Count | None = None
    timeout_s: Seconds | None = None
    concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=10_000)] | None = None
    retry_base_s: Seconds | None = None
    retry_max_s: Seconds | None = None
    start: str | None = Field(None, pattern=_START_PATTERN, description=_START)


class StreamSettings(HandlerOptions):
    """`[stream."name"]`: overrides for all handlers of a stream, or with `group."name"` for one."""

    #: A stream has one retention, whatever groups it has: not for `group."name"`.
    max_age: Duration | None = Field(None, description=DURATION)
    max_length: Annotated[int, Field(ge=0)] | None = None
    group: dict[str, HandlerOptions] = Field(default_factory=dict)


class Settings(Section):
    """The whole of config.toml."""

    #: Handler modules; a package means all its modules.
    handlers: list[str] = Field(default_factory=lambda: ["handlers"])
    #: Control socket, lock and the embedded Redis.
    state_dir: Path = Path(".supervisor")
    redis: RedisSettings = Field(default_factory=RedisSettings)
    pool: PoolSettings = Field(default_factory=PoolSettings)
    consumer: ConsumerSettings = Field(default_factory=ConsumerSettings)
    retry: RetrySettings = Field(default_factory=RetrySettings)
    api: ApiSettings = Field(default_factory=ApiSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    stream: dict[str, StreamSettings] = Field(default_factory=dict)
    #: Free keys for the handlers themselves: `supervisor.context().app["key"]`.
    app: dict[str, Any] = Field(default_factory=dict)

    @property
    def router_modules(self) -> set[str]:
        """The modules that `api.routers` names."""
        return {router.partition(":")[0] for router in self.api.routers}
