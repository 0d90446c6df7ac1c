"""The arbiter owns the HTTP service's listening socket, so no connection is refused while the service restarts."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from supervisor.errors import EXIT_USAGE
from tests.support.pool import Pool
from tests.support.servers import free_port
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
HANDLERS = """
    import subprocess
    from supervisor import handler

    @handler("events", group="g")
    async def handle(message: dict[str, str]) -> None:
        if "child" in message:
            subprocess.Popen(["sleep", "3600"], close_fds=False)
"""


def livez(pool: Pool, limit_s: float = 30) -> bool:
    return httpx.get(f"{pool.base_url}/livez", timeout=limit_s, trust_env=False, verify=False).status_code == 200


def service(pool: Pool, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in pool.ask("status")["services"] if s["name"] == name)
    return found


def test_a_port_in_use_ends_the_start_before_anything_runs(start_pool: StartPool, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        pool = start_pool(
            HANDLERS,
            ready=False,
            config=f'[api]\nbind = "127.0.0.1:{port}"',
            args=("--bind", f"127.0.0.1:{port}"),
            api=True,
        )
        assert pool.wait() == EXIT_USAGE
    assert f"error: 127.0.0.1:{port} is in use; use --bind 127.0.0.1:{port + 1} or [api] bind" in pool.output
    assert not (pool.folder / ".supervisor" / "redis").exists(), "not even the embedded server was started"


def inode(port: int) -> str:
    """Return the name of the listening socket in /proc."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
            return words[9]
    raise AssertionError(f"nobody listens on {port}")


def holders(port: int) -> set[int]:
    """Return the processes that have the listening socket."""
    link, found = f"socket:[{inode(port)}]", set()
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(path) == link:
                found.add(int(path.parts[2]))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
@pytest.mark.long
def test_only_arbiter_and_service_have_the_socket(start_pool: StartPool) -> None:
    pool = start_pool(HANDLERS, api=True)
    assert pool.command("publish", "events", "child=1").returncode == 0
    grandchild = eventually(lambda: [p for p in pool.processes() if p.cmdline()[:1] == ["sleep"]])
    assert {"keeper", "redis", "api"} == {s["name"] for s in pool.ask("status")["services"]} and grandchild
    assert holders(pool.port) == {pool.pid, service(pool, "api")["pid"]}
    assert pool.command("restart", "--wait").returncode == 0
    assert holders(pool.port) == {pool.pid, service(pool, "api")["pid"]}


class Probe:
    """Requests `/livez` every 20 ms on a new connection and counts the results."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._stop = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self.longest_s = 0.0
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        while not self._stop.wait(0.02):
            thread = threading.Thread(target=self._ask)
            thread.start()
            self._threads.append(thread)

    def _ask(self) -> None:
        began_s = time.monotonic()
        try:
            assert livez(self._pool, 60)
        except (httpx.HTTPError, AssertionError) as error:
            self.failures.append(repr(error))
        else:
            self.answered += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


@contextmanager
def probed(pool: Pool) -> Iterator[Probe]:
    probe = Probe(pool)
    thread = threading.Thread(target=probe.run)
    thread.start()
    try:
        eventually(lambda: probe.answered > 20, 30)
        yield probe
        before = probe.answered
        eventually(lambda: probe.answered > before + 20, 60)
    finally:
        probe.end()
        thread.join(60)


def test_a_rolling_restart_refuses_no_connection(start_pool: StartPool, redis_url: str) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_url, api=True, workers=1)
    before = service(pool, "api")["pid"]
    with probed(pool) as probe:
        done = pool.command("restart", "--wait", limit_s=60)
        assert done.returncode == 0, done.stderr
    assert service(pool, "api")["pid"] != before, "the service was replaced during the requests"
    assert probe.failures == [] and probe.answered > 40
    assert pool.stop() == 0


def test_a_killed_service_refuses_no_new_connection(start_pool: StartPool, redis_url: str) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_url, api=True, workers=1)
    with probed(pool) as probe:
        os.kill(service(pool, "api")["pid"], signal.SIGKILL)
    assert service(pool, "api")["restarts"] == 1
    # Connections accepted by the killed service are lost with it; later ones waited for the next service.
    assert not [failure for failure in probe.failures if "ConnectError" in failure], probe.failures
    assert pool.stop() == 0


def serving(pool: Pool) -> dict[str, int]:
    """The processes of the HTTP service by name."""
    return {s["name"]: s["pid"] for s in pool.ask("status")["services"] if s["name"].startswith("api") and s["pid"]}


def answering(pool: Pool) -> set[int]:
    """The processes that have accepted at least one of some connections."""
    clients = [browser(pool) for _ in range(20)]
    try:
        for client in clients:
            assert client.get("/livez").status_code == 200
        return {
            pid
            for pid in serving(pool).values()
            if any(c.status == psutil.CONN_ESTABLISHED for c in psutil.Process(pid).net_connections("tcp"))
        }
    finally:
        for client in clients:
            client.close()


def browser(pool: Pool) -> httpx.Client:
    return httpx.Client(base_url=pool.base_url, timeout=30, trust_env=False, verify=False)


def test_processes_share_the_socket_and_are_replaced_in_turn(start_pool: StartPool, redis_url: str) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_url, api=True, workers=1, config="[api]\nprocesses = 2")
    before = serving(pool)
    assert holders(pool.port) == {pool.pid, *before.values()}
    assert pool.command("restart", "--wait", limit_s=60).returncode == 0
    after = serving(pool)
    assert after.keys() == before.keys() == {"api", "api 2"} and not set(after.values()) & set(before.values())
    [ready] = [line for line in pool.events("service ready") if line["pid"] == after["api"]]
    [left] = [line for line in pool.events("service exited") if line["pid"] == before["api 2"]]
    assert ready["timestamp"] < left["timestamp"], "one of them serves at any time"


@pytest.mark.long
def test_processes_share_the_socket_and_restart_alone(start_pool: StartPool, redis_url: str) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_url, api=True, workers=1, config="[api]\nprocesses = 2")
    before = serving(pool)
    assert list(before) == ["api", "api 2"]
    assert holders(pool.port) == {pool.pid, *before.values()}
    eventually(lambda: answering(pool) == set(before.values()), 60, what="each process has answered")
    with probed(pool) as probe:
        os.kill(before["api 2"], signal.SIGKILL)
        after = eventually(lambda: now if len(now := serving(pool)) == 2 and now["api 2"] != before["api 2"] else None)
    assert after == {**before, "api 2": after["api 2"]}, "the others were left alone"
    assert not [failure for failure in probe.failures if "ConnectError" in failure], probe.failures
    pool.config.write_text(pool.config.read_text().replace("processes = 2", "processes = 1"))
    assert pool.command("restart", "--wait", limit_s=60).returncode == 0
    eventually(lambda: list(serving(pool)) == ["api"])
    assert pool.status()["state"] == "healthy"
    assert pool.stop() == 0


@pytest.mark.long
def test_restart_waits_until_the_new_service_serves(start_pool: StartPool, redis_url: str) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_url, api=True, workers=1)
    before = {s["name"]: s["pid"] for s in pool.ask("status")["services"]}
    assert pool.command("restart", "--wait", limit_s=60).returncode == 0
    after = pool.ask("status")["services"]
    assert {s["name"] for s in after} == set(before) == {"keeper", "api"}
    for found in after:
        assert found["pid"] != before[found["name"]] and found["state"] == "READY", found
    assert livez(pool)


def livez_of(port: int) -> httpx.Response:
    """Request `/livez`, also on a machine so busy that an answer takes seconds."""
    return httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False, verify=False, timeout=30)


@pytest.mark.long
def test_a_restart_changes_the_address_unless_it_is_in_use(tmp_path: Path, redis_url: str) -> None:
    first, second = free_port(), free_port()

    def config(port: int) -> str:
        return f'[api]\nbind = "127.0.0.1:{port}"\n'

    with Pool(tmp_path / "pool", HANDLERS, redis_url=redis_url, workers=1, config=config(first), api=None) as plain:
        plain.start()
        assert livez_of(first).status_code == 200
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", second))
            taken.listen()
            plain.config.write_text(config(second))
            done = plain.command("restart", "--wait")
            assert done.returncode == 1 and f"127.0.0.1:{second} is in use" in plain.output, done.stderr
            assert livez_of(first).status_code == 200
        assert plain.command("restart", "--wait").returncode == 0
        assert livez_of(second).status_code == 200
        with pytest.raises(httpx.ConnectError):
            livez_of(first)
        plain.config.write_text(config(second) + "enabled = false\n")
        assert plain.command("restart", "--wait").returncode == 0
        with pytest.raises(httpx.ConnectError):
            livez_of(second)
        assert plain.status()["state"] == "healthy", "a disabled service does not degrade the pool"


def test_a_draining_pool_accepts_no_connection(start_pool: StartPool, redis_url: str) -> None:
    slow = """
        import asyncio, pathlib
        from supervisor import handler

        @handler("events", group="g")
        async def handle(message: dict[str, str]) -> None:
            print("begun", flush=True)
            while not pathlib.Path("go").exists():
                await asyncio.sleep(0.02)
    """
    pool = start_pool(slow, redis_url=redis_url, api=True, workers=1)
    assert pool.command("publish", "events", "a=1").returncode == 0
    eventually(lambda: "begun" in pool.output)
    pool.send(signal.SIGTERM)

    def refused() -> bool:
        try:
            livez(pool)
        except httpx.ConnectError:
            return True
        return False

    eventually(refused, 20)
    assert psutil.pid_exists(pool.pid) and pool.ask("status")["state"] == "draining"
    (pool.folder / "go").touch()
    assert pool.wait() == 0
