"""The tests' own servers do what the fault tests believe of them."""

import psutil
import pytest
import redis as redis_py

from tests.support.flavours import Flavour
from tests.support.servers import AnyServer, GivenServer, RedisServer
from tests.support.waiting import eventually, eventually_async


async def test_every_server_is_fresh_and_answers(every_server: AnyServer) -> None:
    async with every_server.client() as client:
        assert await client.dbsize() == 0
        assert await client.xadd("events", {"a": "1"})


def test_stopped_server_is_gone_and_comes_back_with_its_data(durable_server: AnyServer) -> None:
    with durable_server.sync() as client:
        client.set("key", "value")
    durable_server.stop()
    assert not durable_server.answers()
    durable_server.start()
    with durable_server.sync() as client:
        assert client.get("key") == b"value"


def test_paused_server_answers_nothing_until_resumed(redis_server: AnyServer) -> None:
    with redis_server.sync(socket_timeout=0.2) as client:
        client.ping()
        redis_server.pause()
        with pytest.raises(redis_py.TimeoutError):
            client.ping()
        redis_server.resume()
        eventually(redis_server.answers)


def test_closed_server_leaves_no_process_and_no_folder() -> None:
    with RedisServer(tcp=True) as server:
        process = psutil.Process(server.pid)
        with redis_py.Redis.from_url(server.tcp_url) as client:
            assert client.ping()
    assert not process.is_running()
    assert not server.folder.exists()


async def test_waiting_in_vain_says_what_was_seen() -> None:
    with pytest.raises(AssertionError, match=r"not within 0.05 s: two is three \(at last it was False\)"):
        eventually(lambda: len("ab") == 3, 0.05, what="two is three")
    with pytest.raises(AssertionError, match="raised ValueError"):
        await eventually_async(lambda: int("x"), 0.05)
    assert await eventually_async(lambda: 3) == 3


def test_given_server_is_not_killed(redis_server: AnyServer) -> None:
    given = GivenServer(Flavour("given", url=redis_server.url))
    with pytest.raises(pytest.skip.Exception):
        given.kill()
    assert redis_server.answers()
    with given.sync() as client:
        client.set("left", 1)
    given.close()
    with redis_server.sync() as client:
        assert client.dbsize() == 0
