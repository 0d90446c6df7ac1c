"""No password in a URL is ever shown, wherever in the URL it stands and however badly it is written."""

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import parse_url

from supervisor.broker.connect import client
from supervisor.errors import ConfigError
from supervisor.settings.masking import masked
from supervisor.settings.validation_errors import shown

#: These letters stand nowhere else, neither in the URLs below nor in the errors about them.
LETTERS = re.compile("[QXYZ]")
PASSWORDS = st.text("QXYZ@:/?#%&=[]+. !", min_size=1).filter(LETTERS.search)
HOSTS = st.sampled_from(["host", "host:6379", "127.0.0.1:6379", "[::1]:6379", "host:6379/0", "a:1,b:2/mymaster/0"])
TAILS = st.sampled_from(["", "?db=1", "?db=1&client_name=me"])
PLACES = st.sampled_from(["redis://{}", "rediss://{}", "redis://user@{}", "unix:///run/redis.sock", "unix:///a@b:c"])


@given(
    st.sampled_from(["redis", "rediss", "unix", "redis+sentinel", "rediss+cluster"]),
    st.sampled_from(["", "user"]),
    PASSWORDS,
    HOSTS,
    TAILS,
)
def test_a_password_before_the_host_is_hidden(scheme: str, user: str, password: str, host: str, tail: str) -> None:
    for written in (password, quote(password, safe="")):
        url = f"{scheme}://{user}:{written}@{host}{tail}"
        assert masked(url) == f"{scheme}://{user}:***@{host}{tail}"


@given(
    PLACES,
    HOSTS,
    st.sampled_from(["password", "pass%77ord", "ssl_password", "sentinel_password"]),
    PASSWORDS,
    st.booleans(),
)
def test_a_password_in_the_query_is_hidden(place: str, host: str, name: str, password: str, first: bool) -> None:
    for written in (quote(password, safe=""), password.replace("&", "")):
        query = f"{name}={written}&db=1" if first else f"db=1&{name}={written}"
        hidden = f"{name}=***&db=1" if first else f"db=1&{name}=***"
        assert masked(f"{place.format(host)}?{query}") == f"{place.format(host)}?{hidden}"


def test_these_are_passwords_to_redis_too() -> None:
    assert parse_url("redis://h?password=s3cret")["password"] == "s3cret"
    assert parse_url("redis://h?pass%77ord=s3cret")["password"] == "s3cret"
    assert parse_url("unix:///x?password=s3cret")["password"] == "s3cret"


@given(st.sampled_from(["redis", "redis+sentinel", "redis+cluster", "http", "redis "]), PASSWORDS, HOSTS, TAILS)
def test_an_error_about_the_url_does_not_show_it_either(scheme: str, password: str, host: str, tail: str) -> None:
    try:
        client(f"{scheme}://:{password}@{host}{tail}")
    except ConfigError as error:
        assert not LETTERS.search(str(error))


@pytest.mark.parametrize(
    "url", ["redis://host", "redis://user@host:1/0", "unix:///tmp/a@b:c.sock?db=1", "", "no url", "redis://["]
)
def test_what_has_no_password_is_shown_as_it_is(url: str) -> None:
    assert masked(url) == url


@given(st.text())
def test_nothing_is_too_odd_to_be_shown(text: str) -> None:
    assert isinstance(masked(text), str)
    assert isinstance(masked(f"redis://{text}"), str)


def test_the_configuration_is_shown_by_the_same_rule() -> None:
    assert shown(("redis", "url"), "redis://h?password=s3cret") == '"redis://h?password=***"'
