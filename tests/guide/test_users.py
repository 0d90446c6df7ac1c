"""Step two of the guide: `POST /users`, and the shipped handlers do the rest."""

import email
import email.policy
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.pool import Pool
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
STREAM = "events:user_created"


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[Pool]:
    """A pool with the shipped handlers and settings, and the embedded server."""
    patience = {"SUPERVISOR_API__PRODUCE_TIMEOUT_MS": "5000"}
    pool = Pool(tmp_path, "", config=(ROOT / "config.toml").read_text(), workers=2, api=True, env=patience, afresh=True)
    (tmp_path / "handlers.py").unlink()
    shutil.copytree(ROOT / "handlers", tmp_path / "handlers", ignore=shutil.ignore_patterns("__pycache__"))
    with pool.start():
        yield pool


def test_a_registered_user_gets_a_mail_and_is_counted(shipped: Pool) -> None:
    with httpx.Client(base_url=shipped.base_url, trust_env=False, timeout=30) as http:
        eventually(lambda: http.get("/readyz").status_code == 200)
        assert http.get("/users").json()["total"] == 0

        days = {datetime.now(UTC).date().isoformat()}
        made = [register(http, email="ada@example.com", name="Ada"), register(http, email="grace@example.com")]
        days.add(datetime.now(UTC).date().isoformat())
        assert [user["user_id"] for user in made] == [1, 2]
        assert http.get("/users").json()["total"] == 2

        events = [json.loads(line) for line in shipped.command("read", STREAM, "--json").stdout.splitlines()]
        assert [event["id"] for event in events] == [user["event_id"] for user in made]
        assert [event["fields"]["email"] for event in events] == ["ada@example.com", "grace@example.com"]

        folder = shipped.folder / ".supervisor" / "mail"
        eventually(lambda: {path.name for path in folder.glob("*.eml")} == {"1.eml", "2.eml"}, what="two mails")
        mail = email.message_from_bytes((folder / "1.eml").read_bytes(), policy=email.policy.default)
        assert (mail["To"], mail["Subject"]) == ("ada@example.com", "Welcome")
        assert "Hello Ada," in mail.get_content()

        counted = eventually(lambda: found if sum((found := registrations(http)).values()) == 2 else None)
        assert set(counted) <= days
        eventually(lambda: [group["pending"] for group in http.get("/v1/groups").json()["groups"]] == [0, 0])


def register(http: httpx.Client, **user: str) -> dict[str, Any]:
    answer = http.post("/users", json=user)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def registrations(http: httpx.Client) -> dict[str, int]:
    found: dict[str, int] = http.get("/users/registrations").json()
    return found
