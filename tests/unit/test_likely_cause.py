"""What is guessed about a connection that the other end has closed."""

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.redis_errors import likely_cause


@pytest.mark.parametrize(
    "text",
    [
        "Connection closed by server.",
        "Error 104 while writing to socket. Connection reset by peer.",
        "Error UNKNOWN while writing to socket. Connection lost.",
        "Error 32 while writing to socket. Broken pipe.",
    ],
)
def test_a_server_that_hangs_up_may_want_tls_whoever_notices_first(text: str) -> None:
    assert "rediss://" in likely_cause("redis://127.0.0.1:6379", RedisConnectionError(text))
    assert likely_cause("rediss://127.0.0.1:6379", RedisConnectionError(text)) == ""


def test_a_server_that_is_not_there_says_nothing_about_tls() -> None:
    assert likely_cause("redis://127.0.0.1:1", RedisConnectionError("Error 111 connecting to 127.0.0.1:1.")) == ""
