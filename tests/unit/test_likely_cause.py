"""What is guessed about a connection that the other end has closed."""

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.redis_errors import causes, likely_cause

HUNG_UP = [
    "Connection closed by server.",
    "Error 104 while writing to socket. Connection reset by peer.",
    "Error UNKNOWN while writing to socket. Connection lost.",
    "Error 32 while writing to socket. Broken pipe.",
]


@pytest.mark.parametrize("text", HUNG_UP)
def test_a_server_that_hangs_up_may_want_tls_whoever_notices_first(text: str) -> None:
    assert "rediss://" in likely_cause("redis://127.0.0.1:6379", RedisConnectionError(text))


@pytest.mark.parametrize("text", HUNG_UP)
@pytest.mark.parametrize("scheme", ["rediss", "rediss+sentinel", "rediss+cluster"])
def test_a_server_with_tls_that_hangs_up_may_want_a_certificate(scheme: str, text: str) -> None:
    url = f"{scheme}://127.0.0.1:6379"
    assert "ssl_certfile=FILE&ssl_keyfile=FILE" in likely_cause(url, RedisConnectionError(text))
    assert likely_cause(f"{url}?ssl_certfile=c.pem&ssl_keyfile=k.pem", RedisConnectionError(text)) == ""


def test_a_server_that_is_not_there_says_nothing_about_tls() -> None:
    assert likely_cause("redis://127.0.0.1:1", RedisConnectionError("Error 111 connecting to 127.0.0.1:1.")) == ""


def test_a_chain_of_causes_that_leads_back_to_its_beginning_ends() -> None:
    first, second = OSError("first"), OSError("second")
    first.__cause__, second.__cause__ = second, first
    assert list(causes(first)) == [first, second]
