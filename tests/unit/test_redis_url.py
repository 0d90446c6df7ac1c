"""The forms of redis.url: what each says, and what is said to those who write it otherwise."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import parse_url

from supervisor.settings.masking import masked
from supervisor.settings.redis_url import RedisUrl, is_cluster, netloc, parse

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-.", min_size=1)
HOSTS = st.lists(st.tuples(NAMES | st.just("::1"), st.integers(1, 65535)), min_size=1, max_size=4)
MASTERS = NAMES.filter(lambda name: not name.isdecimal())
SECRETS = st.text(min_size=1, max_size=20)


@given(st.booleans(), HOSTS, MASTERS, st.integers(0, 15), SECRETS, SECRETS)
def test_a_master_behind_sentinels(
    tls: bool, hosts: list[tuple[str, int]], master: str, db: int, password: str, theirs: str
) -> None:
    places = ",".join(netloc(*host) for host in hosts)
    secrets = quote(password, safe=""), quote(theirs, safe="")
    url = f"redis{'s' * tls}+sentinel://me:{secrets[0]}@{places}/{master}/{db}?sentinel_password={secrets[1]}&ssl_ca_certs=/ca"
    found = parse(url)
    assert (found.kind, found.hosts, found.master, found.sentinel_password) == (
        "sentinel",
        tuple(hosts),
        master,
        theirs,
    )
    options = parse_url(found.url)
    assert (options["username"], options["password"], options.get("db", 0)) == ("me", password, db)
    assert options["ssl_ca_certs"] == "/ca" and "sentinel_password" not in options
    assert found.url.startswith("rediss://" if tls else "redis://")
    assert masked(url) == url.replace(f"me:{secrets[0]}@", "me:***@").replace(f"word={secrets[1]}", "word=***")


@given(st.booleans(), HOSTS, st.sampled_from(["", "/", "/0", "?db=0"]))
def test_a_cluster(tls: bool, hosts: list[tuple[str, int]], tail: str) -> None:
    url = f"redis{'s' * tls}+cluster://{','.join(netloc(*host) for host in hosts)}{tail}"
    assert (parse(url).kind, parse(url).hosts, is_cluster(url)) == ("cluster", tuple(hosts), True)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://:p@h:1/3?client_name=x",
        "rediss://h?ssl_cert_reqs=none",
        "unix:///a,b?db=1",
        "redis:///0",
        "redis://[::1]:65535/15",
        "redis://h/0/",
    ],
)
def test_one_server_is_left_to_redis_py(url: str) -> None:
    assert parse(url) == RedisUrl("server", url)


def test_ports_that_are_left_out() -> None:
    assert parse("redis+sentinel://a,b:1,[::1]/m").hosts == (("a", 26379), ("b", 1), ("::1", 26379))
    assert parse("redis+cluster://a,[::1]:2").hosts == (("a", 6379), ("::1", 2))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sentinel://h/m", "did you mean 'redis+sentinel'?"),
        ("redis-sentinel://h?sentinelMasterId=m", "did you mean 'redis+sentinel'?"),
        ("rediss-cluster://h", "did you mean 'rediss+cluster'?"),
        ("redis+clusters://h", "did you mean 'redis+cluster'?"),
        ("redsi://h", "did you mean 'redis'?"),
        ("valkey://h", "did you mean 'redis'?"),
        ("redis+socket:///x", "did you mean 'unix'?"),
        ("h:6379", "must be redis://..."),
        ("redis://", "must be redis:// with an address after it"),
        ("redis://h:65536", "must have a port from 1 to 65535"),
        ("rediss://me:p@h:0/1", "must have a port from 1 to 65535"),
        ("redis://h/cache", "a number as the database after the host"),
        ("redis://me:p@h:1/1x?client_name=y", "a number as the database after the host"),
        ("redis://a:1,b:2/0", "several hosts are written as redis+sentinel://"),
        ("redis+sentinel://h", "the master's name after the hosts"),
        ("redis+sentinel://h/0", "the master's name after the hosts"),
        ("redis+sentinel://h/?service_name=m", "the master's name after the hosts"),
        ("redis+sentinel://h/m/one", "a number as the database"),
        ("redis+sentinel://h:0/m", "must have hosts as in"),
        ("redis+cluster://h:65536", "must have hosts as in"),
        ("redis+cluster://h,,i", "must have hosts as in"),
        ("redis+cluster://h/1", "a cluster has database 0 only"),
        ("redis+cluster://h?db=2", "a cluster has database 0 only"),
    ],
)
def test_what_is_near_is_told_how_to_write_it(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^must|^several") as caught:
        parse(url)
    assert words in str(caught.value)


@given(st.text())
def test_nothing_else_comes_of_any_text(text: str) -> None:
    for url in (text, f"redis+sentinel://{text}", f"redis+cluster://{text}", f"redis://{text}"):
        try:
            parse(url)
        except ValueError as error:
            assert str(error).startswith(("must ", "several "))
