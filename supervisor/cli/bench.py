"""`supervisor bench`: measures a pool on the user's Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from supervisor.cli.common import Value, command, config_option, dumps, json_option, load_settings, redis_option, talk
from supervisor.text import counted
from supervisor.values import Whole

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.bench.run import Plan, Result
    from supervisor.settings.load import Loaded


@command(
    """\
    supervisor bench                    half a minute, on config.toml's Redis
    supervisor bench --workers 4 --redis redis://10.0.0.5:6379/0
    supervisor bench --messages 20000 --turns 3 --json""",
    short_help="Measure the pool on your own Redis.",
)
@click.option("--workers", type=Value(Whole(1, 64)), default=1, show_default=True, metavar="N", help="Workers.")
@click.option(
    "--messages",
    type=Value(Whole(1_000, 5_000_000)),
    default=100_000,
    show_default=True,
    metavar="N",
    help="How many messages a turn drains.",
)
@click.option(
    "--turns",
    type=Value(Whole(1, 100)),
    default=5,
    show_default=True,
    metavar="N",
    help="How often each contestant is measured.",
)
@click.option("--anyway", is_flag=True, help="Measure even if Redis is busy with other work.")
@config_option
@redis_option
@json_option
def bench(
    workers: int, messages: int, turns: int, anyway: bool, config: Path | None, redis: str | None, as_json: bool
) -> None:
    """Measure how fast a pool drains a stream on your Redis, compared with a loop on redis-py, and how soon it starts a
    handler.

    It uses a stream with a random name, and removes the stream and its keys at the end, also when it is interrupted.
    None of your own keys is read or written. A pool that runs may go on running; it slows both contestants alike.
    """
    import asyncio

    from supervisor.bench.run import Plan
    from supervisor.settings.paths import redis_url

    loaded = load_settings(config, {"redis.url": redis})
    plan = Plan(redis_url(loaded.settings), workers, messages, turns)
    try:
        result = asyncio.run(_measure(loaded, plan, anyway))
    except asyncio.CancelledError:  # by SIGTERM
        raise KeyboardInterrupt from None
    if as_json:
        click.echo(dumps(result.as_dict(), pretty=True))
    else:
        _print(result)


async def _measure(loaded: Loaded, plan: Plan, anyway: bool) -> Result:
    import asyncio
    import contextlib
    import signal

    from supervisor.bench.run import refuse_busy, run
    from supervisor.cli.redis_client import open_redis

    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError):  # as Ctrl-C does, so that all is removed
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with open_redis(loaded.settings) as redis:
        if not anyway:
            await refuse_busy(redis, plan.messages)
        return await run(redis, plan, talk)


def _print(result: Result) -> None:
    from supervisor.cli.tables import table_text

    talk("")
    click.echo(
        f"{result.server}, durability {result.durability}; {counted(result.cores, 'core')},"
        f" {counted(result.workers, 'worker')}, {result.messages:,} messages, {counted(result.turns, 'turn')}\n"
    )
    rows = [
        [
            rate.handler,
            *(f"{value:,.0f}" for value in (rate.pool_per_s.median, rate.pool_per_s.lowest, rate.pool_per_s.highest)),
            f"{rate.loop_per_s.median:,.0f}",
            f"{rate.ratio.median:.2f} ({rate.ratio.lowest:.2f}-{rate.ratio.highest:.2f})",
        ]
        for rate in result.rates
    ]
    numbers = ["messages/s", "lowest", "highest", "redis-py", "ratio"]
    click.echo(table_text(["handler", *numbers], rows, numbers=numbers))
    latency = result.latency_ms
    click.echo(
        f"\nXADD to the handler's first line, idle pool: median {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms"
    )
