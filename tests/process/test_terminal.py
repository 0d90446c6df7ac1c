"""A pool on a terminal: what it prints, and what happens when the terminal is closed."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.pool import MARK, Pool
from tests.support.waiting import eventually

HANDLERS = """
    import asyncio
    from supervisor import handler

    @handler("events", group="g")
    async def handle(message: dict[str, str]) -> None:
        print("begun", flush=True)
        await asyncio.sleep(float(message["for_s"]))
"""


class Terminal:
    """A terminal with a pool that leads its session; `text` is what was printed."""

    def __init__(self, pool: Pool, *words: str, script: str = 'exec "$@"') -> None:
        """`script` runs the pool's command, its `$@`, in a shell on the terminal."""
        self._master, self._slave = os.openpty()
        self.pool = pool
        for name in ("out", "err"):
            (pool.folder / name).touch()
        self._printed = bytearray()
        command = [sys.executable, "-m", "supervisor", *pool._words, *words]
        pool.process = subprocess.Popen(
            # A session leader that opens a terminal gets it as its controlling terminal.
            ["sh", "-c", f'exec <"$0" >"$0" 2>&1; {script}', os.ttyname(self._slave), *command],
            cwd=pool.folder,
            env=pool._env | {MARK: pool._mark, "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "110"},
            start_new_session=True,
        )
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        """Read without blocking in a read, which would keep the terminal open."""
        with contextlib.suppress(OSError):  # the last process has closed its side
            while not self._closing.is_set():
                if select.select([self._master], [], [], 0.05)[0]:
                    self._printed += os.read(self._master, 65536)

    @property
    def text(self) -> str:
        return self._printed.decode(errors="replace").replace("\r\n", "\n")

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def close(self) -> None:
        """Close the terminal."""
        if not self._closing.is_set():
            self._closing.set()
            self._reader.join()
            os.close(self._master)
            os.close(self._slave)


@pytest.fixture
def open_terminal(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def make(*words: str, handlers: str = HANDLERS, script: str = 'exec "$@"', **options: Any) -> Terminal:
        options.setdefault("redis_url", redis_url)
        pool = Pool(tmp_path / f"project{len(made)}", handlers, **options)
        made.append(Terminal(pool, *words, script=script))
        return made[-1]

    yield make
    for terminal in made:
        try:
            terminal.pool.close()
        finally:
            terminal.close()


Open = Callable[..., Terminal]


def test_closing_the_terminal_drains_the_pool(open_terminal: Open) -> None:
    terminal = open_terminal()
    pool = terminal.pool
    pool.wait_ready()
    assert pool.command("publish", "events", "for_s=2").returncode == 0
    eventually(lambda: "begun" in terminal.text)
    terminal.close()
    assert pool.wait() == 0
    pool.assert_nothing_left()
    with_redis = pool.command("streams", "--json")
    assert json.loads(with_redis.stdout)[0]["groups"][0]["pending"] == 0, "running messages were finished"


@pytest.mark.long
def test_a_hangup_with_an_open_terminal_reloads_the_code(open_terminal: Open) -> None:
    pool = open_terminal().pool
    pool.wait_ready()
    before = set(pool.pids().values())
    pool.send(signal.SIGHUP)
    eventually(lambda: (pool.ask("status")["last_operation"] or {}).get("ok"))
    assert before.isdisjoint(pool.pids().values())
    # The new image of the process also knows the terminal.
    assert pool.process is not None and pool.process.poll() is None


def test_a_drain_logs_once_what_it_waits_for_and_its_end(open_terminal: Open) -> None:
    terminal = open_terminal(config="[pool]\ndrain_s = 20")
    pool = terminal.pool
    pool.wait_ready()
    assert pool.command("publish", "events", "--json", "-", stdin='[{"for_s": 8}, {"for_s": 8}]').returncode == 0
    eventually(lambda: terminal.text.count("begun") == 2)
    eventually(lambda: sum(worker["in_flight"] for worker in pool.ask("status")["workers"]) == 2)
    terminal.type(b"\x03")
    assert pool.wait() == 0
    lines = eventually(lambda: terminal.text.splitlines() if "stopped" in terminal.text else None)
    (waiting,) = [line for line in lines if "waiting for" in line]
    workers = 1 if "workers=1" in waiting else 2
    assert f"waiting for workers workers={workers} messages=2 limit_s=20" in waiting
    assert "Ctrl-C again stops at once" in waiting
    assert "stopped" in lines[-1] and "Traceback" not in terminal.text


def test_a_drain_without_running_messages_logs_no_waiting(open_terminal: Open) -> None:
    terminal = open_terminal()
    terminal.pool.wait_ready()
    terminal.type(b"\x03")
    assert terminal.pool.wait() == 0
    eventually(lambda: "stopped" in terminal.text)
    assert "waiting for" not in terminal.text


def test_a_burst_reports_first_and_has_no_http_service(open_terminal: Open) -> None:
    terminal = open_terminal("--burst", api=None)
    assert terminal.pool.wait() == 0
    text = eventually(lambda: terminal.text if "stopped" in terminal.text else None)
    assert "2, until no work is left" in text and "ready" not in text.partition("worker exited")[0]
    assert text.index("supervisor 0.") < text.index("worker exited") < text.index("reason='no work left'")
    assert "http://" not in text and "listening" not in text


def test_a_start_that_waits_for_redis_is_logged(open_terminal: Open) -> None:
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://:hunter2@127.0.0.1:{silent.getsockname()[1]}"
        terminal = open_terminal(redis_url=url)
        eventually(lambda: f"waiting for Redis url={url.replace('hunter2', '***')} limit_s=5" in terminal.text)
        terminal.type(b"\x03")
        assert terminal.pool.wait() == 0
    assert "hunter2" not in terminal.text


def stop(terminal: Terminal) -> None:
    """Stop a pool that runs in a shell."""
    assert terminal.pool.command("stop").returncode == 0
    assert terminal.pool.wait() == 0


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def test_a_pool_in_the_background_of_a_terminal_with_tostop_keeps_its_workers(open_terminal: Open) -> None:
    terminal = open_terminal(script='stty tostop; set -m; "$@" & wait; exit $?')
    pool = terminal.pool
    status = pool.wait_ready()
    assert pool.command("publish", "events", "for_s=0").returncode == 0
    eventually(lambda: "begun" in terminal.text)
    pool.kill_worker(0)
    eventually(lambda: "worker exited" in terminal.text, what="the log is written")
    after = pool.wait_ready()
    assert len(after["workers"]) == 2 and after["pid"] == status["pid"] and "scaled" not in terminal.text
    assert pool.pids()[1] == status["workers"][1]["pid"]
    for number, workers in ((signal.SIGTTIN, 3), (signal.SIGTTOU, 2)):
        os.kill(after["pid"], number)
        eventually(lambda workers=workers: len(pool.wait_ready()["workers"]) == workers, what=f"{number.name} scales")
    stop(terminal)


@pytest.mark.long
def test_a_pool_that_was_stopped_and_put_in_the_background_goes_on(open_terminal: Open) -> None:
    terminal = open_terminal(script='stty tostop; set -m; "$@"; bg; wait; exit $?')
    pool = terminal.pool
    before = pool.wait_ready()
    terminal.type(b"\x1a")
    eventually(lambda: "[1]" in terminal.text, what="the shell has stopped it and put it into the background")
    eventually(lambda: pool.ask("ping") == {})
    assert pool.command("publish", "events", "for_s=0").returncode == 0
    eventually(lambda: "begun" in terminal.text)
    pool.kill_worker(0)
    after = pool.wait_ready()
    assert len(after["workers"]) == 2 and "scaled" not in terminal.text
    used_s = cpu_s(before["pid"])
    wait_until_s = time.monotonic() + 1
    eventually(lambda: time.monotonic() > wait_until_s)
    assert cpu_s(before["pid"]) - used_s < 0.5, "the arbiter does not spin"
    stop(terminal)


def test_signals_from_the_terminal_to_the_whole_group_are_no_commands(open_terminal: Open) -> None:
    """A program beside the pool reads from the terminal in the background: the kernel signals the group of both."""
    reads = "import os, signal; signal.signal(signal.SIGTTIN, lambda *_: os._exit(0)); os.read(0, 1)"
    waits = 'sh -c "while [ ! -e go ]; do sleep 0.05; done"'
    reader = f'{sys.executable} -c "{reads}" <"$0"'
    script = f'set -m; {{ trap "" TTIN; "$@" & {waits}; {reader}; touch gone; wait; }} & wait; exit 0'
    terminal = open_terminal(script=script)
    pool = terminal.pool
    pool.wait_ready()
    (pool.folder / "go").touch()
    eventually((pool.folder / "gone").exists)
    os.kill(pool.ask("status")["pid"], signal.SIGUSR1)
    eventually(lambda: "status state=" in terminal.text or "status " in terminal.text)
    assert len(pool.wait_ready()["workers"]) == 2 and "scaled" not in terminal.text
    assert pool.command("stop").returncode == 0
    pool.wait()


def test_nohup_is_respected(open_terminal: Open) -> None:
    terminal = open_terminal(script='trap "" HUP; exec "$@"')
    pool = terminal.pool
    before = pool.wait_ready()
    pool.send(signal.SIGHUP)
    assert pool.command("restart", "--wait").returncode == 0
    pool.send(signal.SIGHUP)  # the next image of the arbiter ignores it, too
    terminal.close()
    after = pool.wait_ready()
    assert after["pid"] == before["pid"]
    assert [worker["incarnation"] for worker in after["workers"]] == [2, 2]
    assert pool.command("publish", "events", "for_s=0").returncode == 0
    eventually(lambda: sum(worker["done"] for worker in pool.ask("status")["workers"]) == 1)


def test_an_interrupt_that_was_ignored_at_the_start_comes_from_kill_alone(open_terminal: Open) -> None:
    terminal = open_terminal(script='trap "" INT QUIT; exec "$@"')
    pool = terminal.pool
    pool.wait_ready()
    terminal.type(b"\x03\x1c")
    assert pool.command("publish", "events", "for_s=0").returncode == 0
    eventually(lambda: "begun" in terminal.text)
    assert "draining" not in terminal.text and pool.wait_ready()["state"] == "healthy"
    pool.send(signal.SIGINT)
    assert pool.wait() == 0
