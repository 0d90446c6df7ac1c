"""Tests of the handlers: one message at a time, and with a real Redis that the tests start."""

from pathlib import Path

import pytest
from supervisor.testing import Dead, Done, TestPool, assert_nothing_lost, deliver

from handlers.users import UserCreated, welcome

CONFIG = Path(__file__).parents[1] / "config.toml"


async def test_a_user_is_welcomed(capsys: pytest.CaptureFixture[str]) -> None:
    user = UserCreated(user_id=1, email="ada@example.com")
    assert await deliver(welcome, user, config=CONFIG) == Done()
    assert capsys.readouterr().out == "welcome, ada@example.com\n"


async def test_a_message_without_an_email_is_given_up() -> None:
    outcome = await deliver(welcome, {"user_id": "1"}, config=CONFIG)
    assert isinstance(outcome, Dead)
    assert "email: Field required" in outcome.reason


async def test_published_messages_are_handled() -> None:
    async with TestPool(welcome, config=CONFIG) as pool:
        for number in range(10):
            user = UserCreated(user_id=number, email=f"user{number}@example.com")
            await pool.publish("events:user_created", user)
        await pool.settled()
        assert len(pool.done) == 10
        await assert_nothing_lost(pool)
