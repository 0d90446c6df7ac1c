"""Tests of the handlers alone, and of one message in a real pool with its own Redis."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from handlers.users import UserCreated, welcome

PROJECT = Path(__file__).parents[1]
LIMIT_S = 30


def test_a_user_is_welcomed(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(welcome(UserCreated(user_id=1, email="ada@example.com")))
    assert capsys.readouterr().out == "welcome, ada@example.com\n"


def test_a_message_without_an_email_is_refused() -> None:
    with pytest.raises(ValidationError):
        UserCreated.model_validate({"user_id": "1"})


def test_a_published_message_is_handled(tmp_path: Path) -> None:
    # Without a URL the pool starts its own Redis; its data is in tmp_path and goes with the test.
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    environment |= {"SUPERVISOR_REDIS__URL": "", "SUPERVISOR_STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-m", "supervisor"]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        pool = subprocess.Popen(
            [*command, "start", "--workers", "1", "--no-api"], cwd=PROJECT, env=environment, stdout=out, stderr=err
        )
    try:
        until = time.monotonic() + LIMIT_S
        message = ["events:user_created", "user_id=1", "email=ada@example.com"]
        while subprocess.run([*command, "publish", *message], cwd=PROJECT, env=environment, capture_output=True).returncode:
            assert pool.poll() is None and time.monotonic() < until, (tmp_path / "err").read_text()
        while "welcome, ada@example.com" not in (tmp_path / "out").read_text():
            assert pool.poll() is None and time.monotonic() < until, (tmp_path / "err").read_text()
            time.sleep(0.05)
    finally:
        pool.terminate()
        code = pool.wait(LIMIT_S)
    assert code == 0
