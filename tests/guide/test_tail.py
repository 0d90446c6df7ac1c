"""Step three of the guide: following a stream, also while its server crashes."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.run import spawn
from tests.support.servers import AnyServer, RedisServer, default_flavour, start_server
from tests.support.waiting import eventually

STREAM = "events:user_created"


@pytest.fixture
def tcp_server() -> Iterator[AnyServer]:
    """A server on a port, which keeps its data."""
    flavour = default_flavour()
    with (
        RedisServer(flavour, tcp=True, appendonly=True)
        if flavour.binary
        else start_server(flavour, appendonly=True) as server
    ):
        yield server


def test_tail_follows_what_is_new_and_survives_a_crash_of_redis(tmp_path: Path, tcp_server) -> None:
    publish(tcp_server, "before it followed")
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        tail = spawn("tail", STREAM, "--json", cwd=tmp_path, redis_url=tcp_server.tcp_url, stdout=stdout, stderr=stderr)
    try:
        eventually(lambda: f"following {STREAM}" in err.read_text())
        publish(tcp_server, "one")
        eventually(lambda: texts(out) == ["one"])

        port, pid = tcp_server.port, getattr(tcp_server, "pid", None)
        tcp_server.kill()
        eventually(lambda: "can't be reached" in err.read_text(), what="it says that Redis is gone")
        assert tail.poll() is None
        tcp_server.start()
        assert tcp_server.port == port and getattr(tcp_server, "pid", 0) != pid

        publish(tcp_server, "two")
        publish(tcp_server, "three")
        eventually(lambda: texts(out) == ["one", "two", "three"])
        tail.send_signal(signal.SIGINT)
        assert tail.wait(30) == 130
    finally:
        tail.kill()
        tail.communicate()
    assert texts(out) == ["one", "two", "three"]
    assert err.read_text().splitlines()[-1] == "connected again"


def test_ctrl_c_ends_tails_of_a_busy_stream(tmp_path: Path, redis_server) -> None:
    outs = [tmp_path / f"out{n}" for n in range(4)]
    tails = []
    for out in outs:
        with out.open("wb") as stdout:
            tails.append(spawn("tail", STREAM, cwd=tmp_path, redis_url=redis_server.url, stdout=stdout))
    try:
        with redis_server.sync() as client:
            for tail, out in zip(tails, outs, strict=True):
                # Stop in the middle of a flood, since a cancelled send may go unnoticed when the client is idle.
                eventually(lambda o=out: client.xadd(STREAM, {"n": 1}) and o.stat().st_size, interval_s=0.0005)
                for _ in range(100):
                    client.xadd(STREAM, {"n": 1})
                tail.send_signal(signal.SIGINT)
                for _ in range(100):
                    client.xadd(STREAM, {"n": 1})
            assert [tail.wait(30) for tail in tails] == [130] * len(tails)
    finally:
        for tail in tails:
            tail.kill()
            tail.communicate()


def publish(server, text: str) -> None:
    with server.sync() as client:
        client.xadd(STREAM, {"text": text})


def texts(out: Path) -> list[str]:
    return [json.loads(line)["fields"]["text"] for line in out.read_text().splitlines()]
