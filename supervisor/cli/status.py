"""`supervisor status`: the pool and its groups, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import command, config_option, dumps, json_option, load_settings_anyway, talk
from supervisor.errors import EXIT_DEGRADED, EXIT_DOWN, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_COLOURS = {"healthy": "green", "starting": "yellow", "draining": "yellow", "degraded": "red", "down": "red"}


@command("""\
    supervisor status
    supervisor status --json | jq .state""")
@config_option
@json_option
def status(config: Path | None, as_json: bool) -> int:
    """Show the workers and the groups. Exits with 6 when the pool does not do its work, with 8 when none runs."""
    import asyncio

    from supervisor.status import collect

    loaded = load_settings_anyway(config)
    found = asyncio.run(collect(loaded.settings, loaded.root))
    if as_json:
        click.echo(dumps(found, pretty=True))
    else:
        click.echo(show(found))
        if found["pid"] is None:
            talk("`supervisor start` starts it")
    if found["pid"] is None:
        return EXIT_DOWN
    return EXIT_DEGRADED if found["state"] in ("degraded", "down") else EXIT_OK


def show(found: dict[str, Any], *, rates: Mapping[int, float] | None = None) -> str:
    """The document as text for people; `rates`: slot -> messages a second, where they are known."""
    from supervisor.cli.tables import duration

    state = click.style(found["state"], fg=_COLOURS.get(found["state"]), bold=True)
    about = f"pid {found['pid']}, up {duration(found['uptime_s'])}" if found["pid"] else found.get("reason", "")
    redis = found["redis"]
    server = f"{redis['version']}, durability {redis['durability']}" if redis["version"] else redis.get("error", "?")
    lines = [f"{state}  {about}", f"redis    {redis['url']}  {server}"]
    lines += [_operation(found["operation"])] if found.get("operation") else []
    lines += ["paused: no worker takes anything new until `supervisor resume`"] if found.get("paused") else []
    if found["workers"]:
        lines += ["", _workers(found["workers"], rates)]
    if found["groups"]:
        lines += ["", groups_table(found["groups"])]
    return "\n".join(lines)


def _operation(operation: dict[str, Any]) -> str:
    done = f", {operation['done']} of {operation['total']} workers" if "done" in operation else ""
    return f"{operation['kind']}  {operation['phase']}{done}"


def _workers(workers: Sequence[dict[str, Any]], rates: Mapping[int, float] | None) -> str:
    from supervisor.cli.tables import duration, size, table_text

    columns = ["slot", "pid", "state", "boot", "restarts", "beat", "rss", "pss", "running", "done", "failed", "dead"]
    columns += ["per s"] if rates is not None else []
    rows = [
        [
            str(worker["slot"]),
            str(worker["pid"] or "-"),
            worker["state"],
            f"{worker['boot_ms']:.0f} ms" if worker.get("boot_ms") else "-",
            str(worker["restarts"]),
            duration(worker["beat_age_s"]),
            size(worker["rss_bytes"]),
            size(worker["pss_bytes"]),
            *(f"{worker[key]:,}" for key in ("in_flight", "done", "failed", "dead")),
            *([f"{rates.get(worker['slot'], 0.0):,.0f}"] if rates is not None else []),
            _exit_text(worker["last_exit"]),
        ]
        for worker in workers
    ]
    return table_text([*columns, "last exit"], rows, numbers=[name for name in columns if name != "state"])


def _exit_text(left: dict[str, Any] | None) -> str:
    from supervisor.cli.tables import duration

    return f"{left['reason']} after {duration(left['uptime_s'])}" if left else "-"


def groups_table(groups: Sequence[dict[str, Any]]) -> str:
    """The table of groups that `status` and `streams` show."""
    from supervisor.cli.tables import duration, lag_text, table_text

    numbers = ["lag", "pending", "retrying", "consumers", "oldest", "dead"]
    rows = [
        [
            group["stream"],
            group["group"],
            lag_text(group["lag"], group["lag_at_least"]),
            f"{group['pending']:,}",
            f"{group['retrying']:,}",
            str(group["consumers"]),
            duration(group["oldest_s"]),
            f"{group['dead']:,}",
        ]
        for group in groups
    ]
    return table_text(["stream", "group", *numbers], rows, numbers=numbers)
