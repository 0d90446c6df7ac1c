"""The settings as one frozen, typed tree, with every default.

This module says what exists, what it means and what is allowed; `supervisor.settings.load` finds the values (flags,
environment, config.toml).
"""

import re
from pathlib import Path
from typing import Any

from supervisor.settings import redis_url
from supervisor.settings.schedule_section import ScheduleSettings
from supervisor.settings.section import FreeTable, Section, setting, table, tables
from supervisor.values import SECONDS_MAX, WORKERS, Choice, Duration, Flag, FlagOr, Kind, ListOf, Number, Text, Whole

_NAME = "a name without spaces, colons and braces"
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"

SECONDS = Number(above=0)
COUNT = Whole(1)
BATCH = Whole(1, 10_000)
RUN_IN = Choice("thread", "process")
RETENTION = Duration(zero="no limit")
FIELD = Text("the name of a field of the message, or empty")
RATE = Text(
    'a whole number per second, minute, hour or day, such as "100/m" or "1/h", or empty', r"([1-9][0-9]{0,8}/[smhd])?"
)
ON_DEAD = Choice("skip", "halt")
#: More digits may be too large for Redis.
START = Text(
    'an entry id such as "0" or "1700000000000-0", or "$" for new entries only', r"\$|[0-9]{1,19}(-[0-9]{1,19})?"
)
BIND = Text(
    "host:port, with an IPv6 host in brackets, or unix:/path",
    rf"(\[[0-9a-fA-F:.]+\]|[^:\s\[\]]+):{_PORT}|unix:/[^\x00]*[^/\x00]",
)
ROOT_PATH = Text('empty, or a path such as "/events" without a slash at its end', r"(/[A-Za-z0-9._~-]+)*")
ROUTER = Text(
    'a module and the name of a router in it, such as "handlers.http:router"',
    r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*",
)
MIDDLEWARE = Text(
    'a module and the name of a function in it, such as "handlers.middleware:timing"',
    r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*",
)


class FilePath(Kind):
    """A path."""

    def check(self, value: Any) -> Path:
        """Return the path. Raises ValueError."""
        if not isinstance(value, str | Path):
            raise ValueError("must be a path, in quotes")
        return Path(value)


def _check_redis_url(url: str) -> None:
    if url:
        redis_url.parse(url)


def _host_name() -> str:
    import socket

    return re.sub(r"[\s:{}]+", "-", socket.gethostname()) or "localhost"


class RedisSettings(Section):
    """`[redis]`: where the streams live."""

    #: One server, a master that Sentinel names, or a cluster: see `settings.redis_url`. Empty: an embedded server with
    #: its data in `state_dir`/redis.
    url: str = setting(Text(f"{redis_url.FORMS} or empty", check=_check_redis_url), "")
    #: How the embedded server syncs its append-only file.
    appendfsync: str = setting(Choice("everysec", "always", "no"), "everysec")
    #: How long to wait for a connection, and at boot for Redis to answer at all.
    connect_timeout_s: float = setting(SECONDS, 5.0)


class PoolSettings(Section):
    """`[pool]`: the worker processes."""

    workers: int = setting(WORKERS, 8)
    #: Import the handlers once, before the workers are forked; "auto": if nothing in them makes that unsafe.
    preload: bool | str = setting(FlagOr("auto"), "auto")
    #: With `workers_max` above 0, the backlog decides how many workers there are, within these limits.
    workers_min: int = setting(Whole(1, 256), 1)
    workers_max: int = setting(WORKERS, 0)
    #: More workers are started when the backlog would take longer than this.
    backlog_limit_s: float = setting(SECONDS, 10.0)
    #: A worker is replaced when its private memory has grown by this much since it was READY; 0: never.
    recycle_growth_mb: int = setting(Whole(0), 0)
    #: A worker is replaced after this many messages; 0: never.
    recycle_messages: int = setting(Whole(0), 0)
    #: A worker is replaced at this age; 0: never.
    recycle_age_s: float = setting(Number(0), 0.0)
    #: This host's name in consumer names.
    host: str = setting(Text(_NAME, r"[^\s:{}]+"), factory=_host_name)
    #: Tells apart the pools of one host.
    name: str = setting(Text(_NAME, r"[^\s:{}]*"), "")
    #: The deadline of the whole shutdown.
    drain_s: float = setting(SECONDS, 25.0)
    #: A worker without a heartbeat for this long is killed.
    beat_limit_s: float = setting(SECONDS, 5.0)
    #: A worker that is not READY after this long is killed.
    boot_limit_s: float = setting(SECONDS, 15.0)

    def contradictions(self) -> list[tuple[str, str]]:
        """Return an error if workers_max is below workers_min."""
        if 0 < self.workers_max < self.workers_min:
            return [("workers_max", f"must be 0 or at least workers_min = {self.workers_min}")]
        return []

    @property
    def first_workers(self) -> int:
        """The number of workers to start with."""
        return min(max(self.workers, self.workers_min), self.workers_max) if self.workers_max else self.workers


class ConsumerSettings(Section):
    """`[consumer]`: how workers read and run; each handler and stream may differ."""

    #: Where a new group begins: "0" is the stream's first entry, "$" only entries that come after the group was made.
    start: str = setting(START, "0")
    batch_size: int = setting(BATCH, 100)
    concurrency: int = setting(BATCH, 100)
    timeout_s: float = setting(SECONDS, 60.0)
    #: Threads per worker for plain `def` handlers.
    threads: int = setting(Whole(1, 256), 16)
    #: Where a plain `def` runs: in a thread, or in a process of the worker.
    run_in: str = setting(RUN_IN, "thread")
    #: Processes per worker for handlers with run_in = "process".
    processes: int = setting(Whole(1, 256), 1)
    #: Such a process is replaced after this many calls; 0: never.
    max_tasks: int = setting(Whole(0), 0)
    #: A worker reads ahead at most what it finishes within this time.
    hold_ms: int = setting(Whole(1, 60_000), 100)
    #: How long one read waits for entries at the server.
    block_ms: int = setting(Whole(10, 60_000), 5_000)
    #: A message that was alone in hand at this many crashes of its worker becomes a dead letter.
    max_crashes: int = setting(COUNT, 3)
    #: Messages that a consumer of another program holds for longer are given to our workers; 0: never.
    claim_foreign_after_s: float = setting(Number(0, SECONDS_MAX), 0.0)
    #: The field that orders messages: those with the same value run one after another, in the order of the stream, on
    #: whichever worker. Empty: all run as they come.
    key: str = setting(FIELD, "")
    #: How many messages of one key may run at the same time, on all workers of all hosts.
    per_key: int = setting(BATCH, 1)
    #: After a dead letter, "skip" goes on with the key's next message; "halt" waits until the letter is replayed or
    #: dropped.
    on_dead: str = setting(ON_DEAD, "skip")
    #: How many messages of the group may run at the same time, on all workers of all hosts; 0: no limit.
    group_concurrency: int = setting(Whole(0, 10_000), 0)
    #: How many messages of the group may start in a second, minute, hour or day, such as "100/m"; empty: no limit.
    rate: str = setting(RATE, "")
    #: The field that has a rate of its own for each value; empty: one rate for the group.
    rate_key: str = setting(FIELD, "")
    #: The field that says how much of the rate a message takes; empty: 1.
    rate_cost: str = setting(FIELD, "")
    #: Entries that every group has settled are removed from the stream at this age; 0: never.
    max_age: float = setting(RETENTION, 0.0)
    #: Settled entries are removed while the stream has more entries than this; 0: never.
    max_length: int = setting(Whole(0), 0)


class RetrySettings(Section):
    """`[retry]`: what happens to a message whose handler raised."""

    #: With these defaults a message is given up after half an hour of failures.
    max_deliveries: int = setting(COUNT, 15)
    retry_base_s: float = setting(SECONDS, 1.0)
    retry_max_s: float = setting(SECONDS, 300.0)
    #: A worker stops reading new messages of a group when this many of them wait for a retry.
    max_waiting: int = setting(COUNT, 1_000)
    #: While nearly all messages of a handler fail, only one is tried now and then, and no attempts are used up.
    circuit_breaker: bool = setting(Flag(), True)


class OutboxSettings(Section):
    """`[outbox]`: a database whose outbox the pool publishes, see docs/outbox.md."""

    #: SQLAlchemy's URL; a relative SQLite file is in the folder of config.toml. Empty: no relay.
    url: str = setting(
        Text('a URL of SQLAlchemy such as "sqlite+aiosqlite:///app.db", or empty', r"([a-z][\w+]*://.*)?"), ""
    )


class ApiSettings(Section):
    """`[api]`: the HTTP service."""

    enabled: bool = setting(Flag(), True)
    #: host:port, or unix:/path. Anything but loopback and a unix socket needs `token`.
    bind: str = setting(BIND, "127.0.0.1:8000")
    #: Processes of a pool's HTTP service, which accept from one socket. `supervisor api` runs one.
    processes: int = setting(Whole(1, 64), 1)
    #: The path under which a proxy serves the service.
    root_path: str = setting(ROOT_PATH, "")
    #: When set, every request must carry `Authorization: Bearer <token>`, except for probes and pages about errors.
    token: str = setting(Text(), "")
    #: A second token, with which one can read everything and change nothing.
    read_token: str = setting(Text(), "")
    #: Files with these tokens instead, read again when they change.
    token_file: str = setting(Text(), "")
    read_token_file: str = setting(Text(), "")
    #: A publish is answered within this time, with 503 when Redis has not stored it.
    produce_timeout_ms: int = setting(Whole(10, 60_000), 200)
    #: The largest request body.
    max_body_bytes: int = setting(Whole(1024), 16 * 1024 * 1024)
    #: Clients that may follow streams at once, in each process; each has a connection to Redis.
    max_tails: int = setting(Whole(0, 10_000), 200)
    #: The streams that clients may publish to, as names or patterns such as "events:*"; empty: any.
    streams: list[str] = setting(ListOf(Text(), '["events:*"]'), factory=list)
    #: Check messages against the model of the stream's handlers before they are stored.
    validate: bool = setting(Flag(), False)
    #: A publish is answered when this many replicas have it; `?wait_replicas=` decides for one request.
    wait_replicas: int = setting(Whole(0, 16), 0)
    #: A publish is answered when it is in the append-only file on disk (Redis 7.2); `?wait_aof=` for one request.
    wait_aof: bool = setting(Flag(), False)
    #: How long to wait for that.
    wait_timeout_ms: int = setting(Whole(1, 60_000), 1_000)
    #: A publish is refused (429) while a group of the stream has more messages that are not settled; 0: never.
    max_lag: int = setting(Whole(0), 0)
    #: A publish is refused (503) while Redis uses more of its `maxmemory`, in percent; 0: never.
    max_memory_percent: float = setting(Number(0, 100), 0.0)
    #: The project's own FastAPI routers, imported in the process of the HTTP service only.
    routers: list[str] = setting(ListOf(ROUTER, '["handlers.http:router"]'), factory=list)

    def contradictions(self) -> list[tuple[str, str]]:
        """Each token has one source, and there is no read_token without a token."""
        problems = [
            (f"{name}_file", f"must be empty, since {name} is set")
            for name in ("token", "read_token")
            if getattr(self, name) and getattr(self, f"{name}_file")
        ]
        if (self.read_token or self.read_token_file) and not (self.token or self.token_file):
            problems.append(("read_token", "must be empty without token or token_file: nobody could change anything"))
        return problems


class LogSettings(Section):
    """`[log]`: the supervisor's own log, on stderr."""

    level: str = setting(Choice("debug", "info", "warning", "error"), "info")
    #: auto: readable text on a terminal, JSON lines otherwise.
    format: str = setting(Choice("auto", "human", "json"), "auto")


class HandlerOptions(Section):
    """The options of one handler, None where it leaves them to the sections above."""

    max_deliveries: int | None = setting(COUNT)
    timeout_s: float | None = setting(SECONDS)
    concurrency: int | None = setting(BATCH)
    batch_size: int | None = setting(BATCH)
    retry_base_s: float | None = setting(SECONDS)
    retry_max_s: float | None = setting(SECONDS)
    start: str | None = setting(START)
    run_in: str | None = setting(RUN_IN)
    max_tasks: int | None = setting(Whole(0))
    key: str | None = setting(FIELD)
    per_key: int | None = setting(BATCH)
    on_dead: str | None = setting(ON_DEAD)
    group_concurrency: int | None = setting(Whole(0, 10_000))
    rate: str | None = setting(RATE)
    rate_key: str | None = setting(FIELD)
    rate_cost: str | None = setting(FIELD)


class StreamSettings(HandlerOptions):
    """`[stream."name"]`: overrides for all handlers of a stream, or with `group."name"` for one."""

    #: The retention of the stream, for all its groups: not for `group."name"`.
    max_age: float | None = setting(RETENTION)
    max_length: int | None = setting(Whole(0))
    group: dict[str, HandlerOptions] = tables(HandlerOptions)


class Settings(Section):
    """The whole of config.toml."""

    #: Handler modules; a package means all its modules.
    handlers: list[str] = setting(ListOf(Text(), '["handlers"]'), factory=lambda: ["handlers"])
    #: Functions around the call of every handler, the outermost first.
    middleware: list[str] = setting(ListOf(MIDDLEWARE, '["handlers.middleware:timing"]'), factory=list)
    #: Control socket, lock and the embedded Redis.
    state_dir: Path = setting(FilePath(), Path(".supervisor"))
    redis: RedisSettings = table(RedisSettings)
    pool: PoolSettings = table(PoolSettings)
    consumer: ConsumerSettings = table(ConsumerSettings)
    retry: RetrySettings = table(RetrySettings)
    outbox: OutboxSettings = table(OutboxSettings)
    api: ApiSettings = table(ApiSettings)
    log: LogSettings = table(LogSettings)
    stream: dict[str, StreamSettings] = tables(StreamSettings)
    schedule: dict[str, ScheduleSettings] = tables(ScheduleSettings)
    #: Free keys for the handlers themselves: `supervisor.context().app["key"]`.
    app: dict[str, Any] = setting(FreeTable(), factory=dict)

    @property
    def router_modules(self) -> set[str]:
        """The modules that `api.routers` names."""
        return {router.partition(":")[0] for router in self.api.routers}
