"""`supervisor status`: prints the state of the pool and its groups once."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

import click

from supervisor.cli.common import command, config_option, dumps, json_option, load_settings_anyway, talk
from supervisor.cli.pool_lookup import down_hint
from supervisor.cli.tables import lag_text, size, table_text
from supervisor.errors import EXIT_DEGRADED, EXIT_DOWN, EXIT_OK
from supervisor.text import counted, duration_text, exit_text

#: The width of the labels on the left, and where the text after them begins.
_LABEL = 8
TEXT_AT = _LABEL + 2
#: A message that is due is moved within half a second by any pool.
OVERDUE_S = 1.0
#: How long `supervisor top` shows that a restart has failed; `status` shows it until the next one.
RECENT_S = 600.0
#: `supervisor schedule list` shows all.
_SCHEDULES_MAX = 3
_COLOURS = {
    "healthy": "green",
    "starting": "yellow",
    "paused": "yellow",
    "draining": "yellow",
    "degraded": "red",
    "down": "red",
}


@command(
    """\
    supervisor status
    supervisor status --json | jq .state""",
    short_help="Show workers, services and groups, once.",
)
@config_option
@json_option
def status(config: Path | None, as_json: bool) -> int:
    """Show the workers and the groups. Exits with 6 when the pool is degraded or silent, with 8 when none runs."""
    import asyncio

    from supervisor.control.client import is_held
    from supervisor.settings.paths import pool_paths
    from supervisor.status import collect

    loaded = load_settings_anyway(config)
    document = asyncio.run(collect(loaded.settings))
    if as_json:
        click.echo(dumps(document, pretty=True))
    else:
        click.echo(show(document))
    if document["pid"] is not None:
        return EXIT_DEGRADED if document["state"] in ("degraded", "down") else EXIT_OK
    if is_held(pool_paths(loaded.settings)):  # a pool runs and does not answer: another start would be refused
        return EXIT_DEGRADED
    if not as_json:
        if not document["groups"] and document["redis"]["version"]:
            talk("no pool has run here yet; `supervisor streams` loads the handlers and shows their groups")
        talk(down_hint(loaded))
    return EXIT_DOWN


def show(document: dict[str, Any], *, rates: Mapping[int, float] | None = None) -> str:
    """Format the document for people. `rates` has messages per second by slot."""
    lines = head_lines(document, live=rates is not None)
    if document["workers"]:
        lines += ["", workers_table(document["workers"], rates)]
    if document["groups"]:
        lines += ["", groups_table(document["groups"])]
    return "\n".join([*lines, *dead_letters(document["groups"])])


def head_lines(document: dict[str, Any], *, live: bool) -> list[str]:
    """Format the pool as a whole: its state, what is wrong, its Redis and services. `live`: for `top`."""
    state = click.style(f"{document['state']:{_LABEL}}", fg=_COLOURS.get(document["state"]), bold=True)
    pid, up = document["pid"], duration_text(document["uptime_s"])
    about = f"pid {pid}, up {up}" if pid else document.get("reason", "")
    redis = document["redis"]
    if redis["version"]:
        server = f"{redis['version']}, durability {redis['durability']}, at {redis['url']}"
    else:
        server = f"{redis['url']}: {redis.get('error', '?')}"
    lines = [f"{state}  {about}", *(_line("", reason) for reason in document.get("degraded_reasons", ()))]
    lines.append(_line("redis", server))
    lines += [_line("services", ", ".join(map(_service, document["services"])))] if document.get("services") else []
    lines += _outbox(document.get("outbox"))
    lines += _operations(document.get("operation"), document.get("last_operation"), live=live)
    if since := document.get("paused_since"):
        lines.append(_line("paused", f"since {since}: no message is started until `supervisor resume`"))
    lines += [*_late_acks(document["workers"]), *_trimmed(document["groups"]), *_later(document.get("later", ()))]
    lines += _schedules(document.get("schedules", ()))
    return "\n".join(lines).split("\n")


def _outbox(outbox: dict[str, Any] | None) -> list[str]:
    """Report what the relay of the database's outbox does."""
    if not outbox:
        return []
    text = outbox["state"].replace("_", " ")
    if outbox["oldest_s"] is not None:
        text += f", {counted(outbox['rows'], 'row')} waiting, the oldest for {duration_text(outbox['oldest_s'])}"
    return [_line("outbox", text)]


def _later(counts: Sequence[dict[str, Any]]) -> list[str]:
    """Report what is to be published later."""
    lines = []
    for one in counts:
        text = f"{counted(one['waiting'], 'message')} of {one['stream']}"
        if one["overdue_s"] is not None and one["overdue_s"] >= OVERDUE_S:
            text += f"; the first is overdue for {duration_text(one['overdue_s'])}"
        if one["malformed"]:
            text += f"; {one['malformed']:,} malformed, see `supervisor later list {one['stream']}`"
        lines.append(_line("later", text))
    return lines


def _schedules(schedules: Sequence[dict[str, Any]]) -> list[str]:
    """Report the schedules that come next, and those that are paused."""
    coming = sorted(schedules, key=lambda one: datetime.fromisoformat(one["next"]).timestamp() if one["next"] else inf)
    lines = []
    for one in coming[:_SCHEDULES_MAX]:
        when = f"next {one['next']}" if one["next"] else f"paused since {one['paused_since']}"
        lines.append(_line("schedule", f"{one['name']}: {when}"))
    more = len(schedules) - _SCHEDULES_MAX
    return [*lines, _line("", f"{more} more: `supervisor schedule list`")] if more > 0 else lines


def _trimmed(groups: Sequence[dict[str, Any]]) -> list[str]:
    """Report entries that somebody removed before a group read them."""
    return [
        _line("trimmed", f"{trimmed_text(group)}; is a producer's MAXLEN too small?")
        for group in groups
        if group.get("trimmed_unread")
    ]


def trimmed_text(group: dict[str, Any]) -> str:
    """Describe the entries that a group will never get."""
    count = group["trimmed_unread"]
    entries = "1 entry" if count == 1 else f"{count:,} entries"
    return f"{entries} of {group['stream']} removed before group {group['group']} read them"


def _line(label: str, text: str) -> str:
    """Format a labelled line; further lines of the text are indented like the first."""
    return f"{label:{_LABEL}}  " + text.replace("\n", "\n" + " " * TEXT_AT)


def _operations(now: dict[str, Any] | None, last: dict[str, Any] | None, *, live: bool) -> list[str]:
    """Report the restart in progress, or that the last one has failed: the pool runs its earlier code."""
    if now:
        done = f", {now['done']} of {now['total']} workers" if "done" in now else ""
        return [_line(now["kind"], f"{now['phase']}{done}")]
    if not last or last["ok"]:
        return []
    age_s = last.get("age_s")  # a pool of an earlier version does not tell
    if live and age_s is not None and age_s > RECENT_S:
        return []
    when = "" if age_s is None else f" {duration_text(age_s)} ago"
    return [_line(last["kind"], f"failed{when}: {last['error']}")]


def _late_acks(workers: Sequence[dict[str, Any]]) -> list[str]:
    """Report acks that came too late: the message was settled elsewhere, since this host seemed dead."""
    late = sum(worker.get("lost_claim", 0) for worker in workers)
    return (
        [_line("late", f"{counted(late, 'ack')} of messages that were settled elsewhere (lost_claim)")] if late else []
    )


def _service(service: dict[str, Any]) -> str:
    left = service["last_exit"]
    fault = f" ({counted(service['restarts'], 'restart')}, the last: {exit_text(left)})"
    return f"{service['name']} {service['state']}" + (fault if left and left["reason"] != "drained" else "")


def workers_table(workers: Sequence[dict[str, Any]], rates: Mapping[int, float] | None) -> str:
    """Format the table of workers. `rates` has messages per second by slot."""
    columns = ["slot", "pid", "state", "boot", "restarts", "beat", "rss", "pss", "running", "done", "failed", "dead"]
    columns += ["per s"] if rates is not None else []
    rows = [
        [
            str(worker["slot"]),
            str(worker["pid"] or "-"),
            worker["state"],
            f"{worker['boot_ms']:.0f} ms" if worker.get("boot_ms") else "-",
            str(worker["restarts"]),
            duration_text(worker["beat_age_s"]),
            size(worker["rss_bytes"]),
            size(worker["pss_bytes"]),
            *(f"{worker[key]:,}" for key in ("running", "done", "failed", "dead")),
            *([f"{rates.get(worker['slot'], 0.0):,.0f}"] if rates is not None else []),
            exit_text(worker["last_exit"]),
        ]
        for worker in workers
    ]
    numbers = [name for name in columns if name != "state"]
    return table_text([*columns, "last exit"], rows, numbers=numbers, drop=("rss", "boot", "beat", "last exit", "pss"))


def groups_table(groups: Sequence[dict[str, Any]]) -> str:
    """Format the table of groups in `status` and `streams`. `waiting` is there where some message waits."""
    waiting = [_waiting_text(group["waiting_turn"], group["waiting_rate"]) for group in groups]
    numbers = ["lag", "pending", *(["waiting"] if any(waiting) else []), "retrying", "consumers", "oldest", "dead"]
    rows = [
        [
            group["stream"],
            group["group"],
            lag_text(group["lag"], group["lag_at_least"]),
            f"{group['pending']:,}",
            *([text] if any(waiting) else []),
            f"{group['retrying']:,}",
            str(group["consumers"]),
            duration_text(group["oldest_s"]),
            f"{group['dead']:,}",
        ]
        for group, text in zip(groups, waiting, strict=True)
    ]
    return table_text(["stream", "group", *numbers], rows, numbers=numbers, drop=("consumers", "retrying", "waiting"))


def _waiting_text(turn: int, rate: int) -> str:
    """Return how many messages wait for their turn or rate; empty where none does."""
    parts = [f"{number:,} {what}" for number, what in ((turn, "turn"), (rate, "rate")) if number]
    return ", ".join(parts)


def dead_letters(groups: Sequence[dict[str, Any]]) -> list[str]:
    """Return a hint on how to list the dead letters, in two lines however many groups have some."""
    pairs = [(group["stream"], group["group"]) for group in groups if group["dead"]]
    if not pairs:
        return []
    if len(pairs) == 1:
        return ["", f"dead letters of {pairs[0][1]}:", f"  {dead_command(*pairs[0])}"]
    total = sum(group["dead"] for group in groups)
    return ["", f"{counted(total, 'dead letter')} of {len(pairs)} groups:", "  supervisor dead list"]


def dead_command(stream: str, group: str) -> str:
    """Return the command that lists a group's dead letters."""
    import shlex

    return shlex.join(["supervisor", "dead", "list", stream, group])
