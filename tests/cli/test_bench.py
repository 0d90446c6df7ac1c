"""`supervisor bench` on real servers: its figures, and that it removes everything however it ends."""

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from supervisor.cli.main import EXIT_INTERRUPTED
from supervisor.errors import EXIT_FAILED
from tests.cli.run import run, spawn
from tests.support.waiting import eventually

SMALL = ("--messages", "2000", "--turns", "1")


@pytest.fixture
def folder_for_sockets() -> Iterator[Path]:
    """A temporary folder with a short path: pytest's own may be too long for a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_it_measures_and_leaves_only_what_was_there(tmp_path: Path, every_server) -> None:
    with every_server.sync() as redis:
        redis.set("theirs", "1")
        redis.hset("supervisor:pools", "other", "1700000000000")
        done = run("bench", *SMALL, "--json", cwd=tmp_path, redis_url=every_server.url)
        if every_server.flavour.name == "redis-6.2":
            assert done.returncode == 1 and "bench needs Redis 7.0 or newer" in done.stderr
            assert sorted(redis.keys("*")) == [b"supervisor:pools", b"theirs"]
            return
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert [rate["handler"] for rate in found["rates"]] == ["Message", "dict[str, str]", "pydantic model"]
        for rate in found["rates"]:
            assert 0 < rate["ratio"]["lowest"] <= rate["ratio"]["median"] <= rate["ratio"]["highest"]
        assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
        assert sorted(redis.keys("*")) == [b"supervisor:pools", b"theirs"]
        assert redis.hgetall("supervisor:pools") == {b"other": b"1700000000000"}


def test_the_table_fits_80_columns(tmp_path: Path, redis_server) -> None:
    (tmp_path / "redis.py").write_text("1 / 0\n")  # a module of the project, which is imported nowhere
    done = run("bench", *SMALL, cwd=tmp_path, redis_url=redis_server.url)
    assert done.returncode == 0, done.stderr
    assert "pydantic model" in done.stdout
    assert "durability none" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted_it_removes_its_keys_and_its_pool(
    tmp_path: Path, folder_for_sockets: Path, redis_server, number, monkeypatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(folder_for_sockets))
    with redis_server.sync() as redis:
        with spawn(
            "bench", "--messages", "1000", "--turns", "100", cwd=tmp_path, redis_url=redis_server.url
        ) as process:
            eventually(lambda: b"supervisor:pools" in redis.keys("*"), 30, what="its pool runs")
            (folder,) = folder_for_sockets.glob("supervisor-bench-*")
            process.send_signal(number)
            assert process.wait(30) == EXIT_INTERRUPTED
        assert redis.keys("*") == []
        assert not folder.exists()
        left = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]
        assert left == []


@pytest.mark.long
def test_killed_its_pool_ends_and_the_next_one_removes_its_keys(
    tmp_path: Path, folder_for_sockets: Path, redis_server, monkeypatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(folder_for_sockets))
    with spawn("bench", "--messages", "1000", "--turns", "100", cwd=tmp_path, redis_url=redis_server.url) as process:
        with redis_server.sync() as redis:
            eventually(lambda: b"supervisor:pools" in redis.keys("*"), 30, what="its pool runs")
        pools = [child for child in psutil.Process(process.pid).children() if "start" in child.cmdline()]
        process.kill()
        assert pools
        eventually(lambda: not any(pool.is_running() for pool in pools), what="the pool is gone")
    with redis_server.sync() as redis:
        assert redis.keys("supervisor-bench:*")
        eventually(lambda: not redis.keys("supervisor:host:*"), what="its pool's lease has ended")
        done = run("bench", *SMALL, cwd=tmp_path, redis_url=redis_server.url)
        assert done.returncode == 0, done.stderr
        assert redis.keys("*") == []


def test_it_refuses_a_server_that_would_evict_keys(tmp_path: Path, redis_server) -> None:
    with redis_server.sync() as redis:
        redis.config_set("maxmemory", "16mb")
        done = run("bench", "--messages", "1000000", cwd=tmp_path, redis_url=redis_server.url)
        assert done.returncode == EXIT_FAILED
        assert "maxmemory" in done.stderr
        assert "--messages" in done.stderr
        assert redis.keys("*") == []
