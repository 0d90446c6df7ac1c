"""What `supervisor top` shows on a terminal of 24 lines: everything is reached by scrolling, and the sums stay."""

from typing import Any

import click
import pytest

from supervisor.cli.screen import View, commands_of, moved, view
from supervisor.cli.status import show

ROWS, COLUMNS, GROUPS, WORKERS = 24, 80, 15, 8


def worker(slot: int) -> dict[str, Any]:
    figures = {"restarts": 0, "in_flight": 2, "running": 2, "done": 1000, "failed": 1, "dead": 0}
    return {"slot": slot, "pid": 9000 + slot, "state": "READY", "boot_ms": 90.0, "beat_age_s": 0.1, **figures} | {
        "rss_bytes": None,
        "pss_bytes": None,
        "last_exit": None,
    }


def group(number: int) -> dict[str, Any]:
    figures = {
        "lag": 100,
        "pending": 3,
        "retrying": 1,
        "waiting_turn": 0,
        "waiting_rate": 0,
        "consumers": 8,
        "oldest_s": float(number),
        "dead": number % 2,
    }
    return {"stream": f"events:{number}", "group": f"group{number}", "lag_at_least": False, **figures}


@pytest.fixture
def found() -> dict[str, Any]:
    redis = {"version": "Redis 7.0.15", "durability": "everysec", "url": "redis://localhost"}
    head = {"state": "healthy", "pid": 4711, "uptime_s": 61.0, "redis": redis}
    services = [{"name": name, "state": "READY", "restarts": 0, "last_exit": None} for name in ("keeper", "api")]
    return {
        **head,
        "services": services,
        "workers": [worker(slot) for slot in range(WORKERS)],
        "groups": [group(number) for number in range(GROUPS)],
    }


def shown(found: dict[str, Any], offset: int = 0, height: int = ROWS) -> View:
    made = view(found, dict.fromkeys(range(WORKERS), 10.0), "12:00:00", offset, (COLUMNS, height))
    assert len(made.lines) == height, "the screen is filled and not exceeded"
    return made


@pytest.mark.parametrize(
    ("ok", "age_s", "in_status", "in_top"),
    [
        (False, 45.0, "restart   failed 45 s ago: no such module", True),
        (False, 7_500.0, "restart   failed 2 h 5 m ago: no such module", False),
        (False, None, "restart   failed: no such module", True),
        (True, 45.0, "", False),
    ],
)
def test_a_failed_restart_is_shown_in_status_and_for_some_minutes_in_top(
    found: dict[str, Any], ok: bool, age_s: float | None, in_status: str, in_top: bool
) -> None:
    error = None if ok else "no such module"
    found["last_operation"] = {"kind": "restart", "ok": ok, "error": error, "age_s": age_s}
    assert [line for line in show(found).splitlines() if "restart " in line] == ([in_status] if in_status else [])
    for lines in (shown(found, height=ROWS).lines, show(found, rates={}).splitlines()):
        assert (in_status in lines) == in_top or not in_status
        assert any("no such module" in line for line in lines) == in_top


def test_all_groups_fit_and_the_sums_are_above_them(found: dict[str, Any]) -> None:
    text = "\n".join(shown(found).lines)
    assert all(f"events:{number} " in text for number in range(GROUPS))
    assert "workers   8 of 8 ready, 80 per s, 16 running, 8,000 done, 8 failed" in text
    assert "groups    15, lag 1,500, 45 pending, 15 retrying, 7 dead, oldest 14 s" in text
    assert click.unstyle(text.splitlines()[0]) == "healthy   pid 4711, up 1 m 1 s, 12:00:00"
    assert "q quits" in text.splitlines()[-1]


@pytest.mark.parametrize("height", [8, 10, 24, 25, 60])
def test_scrolling_reaches_every_line(found: dict[str, Any], height: int) -> None:
    offset, seen = 0, set[str]()
    for _ in range(60):
        made = shown(found, offset, height)
        seen |= set(made.lines)
        assert any(line.startswith("groups ") for line in made.lines)
        offset = moved(made.offset, "page down", made.page)
    text = "\n".join(seen)
    assert all(f"events:{number} " in text for number in range(GROUPS))
    assert all(f" {9000 + slot} " in text for slot in range(WORKERS))
    bottom = shown(found, moved(0, "bottom", 1), height)
    assert any(f" {9000 + WORKERS - 1} " in line for line in bottom.lines)
    assert shown(found, moved(bottom.offset, "top", bottom.page), height).offset == 0
    if bottom.offset:
        assert shown(found, moved(bottom.offset, "up", bottom.page), height).offset == bottom.offset - 1


def test_many_faults_leave_room_for_the_sums(found: dict[str, Any]) -> None:
    found |= {"state": "degraded", "degraded_reasons": [f"fault {number}" for number in range(40)]}
    text = "\n".join(shown(found).lines)
    assert "fault 0" in text and "groups    15" in text and "lines 1-" in text
    offset, seen = 0, ""
    for _ in range(10):
        made = shown(found, offset)
        offset, seen = moved(made.offset, "page down", made.page), "\n".join([seen, *made.lines])
    assert all(f"fault {number}\n" in seen for number in range(40)), "the others are reached by scrolling"


@pytest.mark.parametrize("state", ["healthy", "down"])
def test_a_long_reason_is_folded_and_whole(found: dict[str, Any], state: str) -> None:
    words = [f"word{number}" for number in range(60)]
    error = f"nothing was changed:\n/srv/{'long/' * 30}handlers.py:1: {' '.join(words)}"
    found |= {"state": state, "last_operation": {"kind": "restart", "ok": False, "error": error, "age_s": 1.0}}
    found |= {"pid": None, "reason": "no supervisor answers on /srv/" + "x" * 80} if state == "down" else {}
    lines = [click.unstyle(line) for line in shown(found).lines]
    assert [line for line in lines if len(line) > COLUMNS] == []
    text = "".join(line.strip() for line in lines)
    assert f"/srv/{'long/' * 30}handlers.py:1:" in text
    assert ("x" * 80 in text) == (state == "down")
    assert [word for word in words if word not in text] == []
    assert lines[0].startswith(f"{state} ") and "12:00:00" in text


def test_keys() -> None:
    assert commands_of("jk\x1b[A\x1b[B \x1b[5~\x1b[6~gGq") == [
        "down", "up", "up", "down", "page down", "page up", "page down", "top", "bottom", "quit",
    ]  # fmt: skip
    assert commands_of("xyz\x1b[Z\x1b") == []


def test_the_column_of_waiting_messages_is_there_only_where_some_wait(found: dict[str, Any]) -> None:
    assert "waiting" not in show(found)
    found["groups"][1] |= {"waiting_turn": 1_200, "waiting_rate": 3}
    assert "  waiting" in show(found) and "1,200 turn, 3 rate" in show(found)
