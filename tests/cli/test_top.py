"""`supervisor top` on a terminal of 80 columns and 24 lines: it scrolls, and q ends it."""

import contextlib
import os
import re
import signal
import termios
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from supervisor.control import last_groups
from supervisor.settings.paths import paths_in
from tests.cli.run import spawn, terminal_of
from tests.support.servers import AnyServer
from tests.support.waiting import eventually

COUNT = 30
ENTER_SCREEN, LEAVE_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"


def last_screen(printed: bytes) -> str:
    """The last complete drawing, without its control sequences."""
    screens = printed.decode(errors="replace").split("\x1b[H")
    whole = [screen for screen in screens if "q quits" in screen]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", whole[-1]) if whole else ""


def test_it_scrolls_and_q_ends_it(tmp_path: Path, redis_server: AnyServer) -> None:
    paths = paths_in(tmp_path / ".supervisor")
    paths.state_dir.mkdir()
    last_groups.write(paths, [(f"events:{number:02}", "readers") for number in range(COUNT)])
    with terminal_of(80, 24) as (master, slave, printed):
        before = termios.tcgetattr(slave)
        size = {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
        options = {"stdin": slave, "stdout": slave, "stderr": slave, "env": size}
        top = spawn("top", "--interval", "60", cwd=tmp_path, redis_url=redis_server.url, **options)
        with top, contextlib.ExitStack() as ended:
            ended.callback(top.kill)
            first = eventually(lambda: last_screen(bytes(printed)), 20)
            assert "events:00" in first and "events:29" not in first and f"groups    {COUNT}, lag 0" in first
            os.write(master, b"G")
            eventually(lambda: "events:29" in last_screen(bytes(printed)))
            assert f"groups    {COUNT}, lag 0" in last_screen(bytes(printed)), "the sums stay"
            os.write(master, b"\x1b[5~")
            eventually(lambda: "events:29" not in last_screen(bytes(printed)))
            os.write(master, b"q")
            assert top.wait(20) == 0
        assert termios.tcgetattr(slave) == before, "the terminal is as it was"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_it_leaves_the_terminal_as_it_was(
    tmp_path: Path, redis_server: AnyServer, number: signal.Signals
) -> None:
    with terminal_of(80, 24) as (_, slave, printed):
        before = termios.tcgetattr(slave)
        options = {"stdin": slave, "stdout": slave, "stderr": slave, "env": {"TERM": "xterm"}}
        with spawn("top", cwd=tmp_path, redis_url=redis_server.url, **options) as top, contextlib.ExitStack() as ended:
            ended.callback(top.kill)
            eventually(lambda: "q quits" in bytes(printed).decode(errors="replace"), 20)
            top.send_signal(number)
            assert top.wait(20) == 128 + number
        assert termios.tcgetattr(slave) == before
        eventually(lambda: LEAVE_SCREEN in bytes(printed))
        assert b"Traceback" not in printed


def until_drawn(printed: bytearray, since: int, act: Callable[[], None]) -> None:
    act()
    eventually(lambda: "q quits" in last_screen(bytes(printed[since:])))


def test_stopped_it_gives_the_terminal_back_and_takes_it_again(tmp_path: Path, redis_server: AnyServer) -> None:
    """As with Ctrl-Z and `fg`. In a group of its own, since the kernel stops no orphaned one for SIGTSTP."""
    with terminal_of(80, 24) as (master, slave, printed):
        before = termios.tcgetattr(slave)
        options = {"stdin": slave, "stdout": slave, "stderr": slave, "env": {"TERM": "xterm"}, "process_group": 0}
        words = ("top", "--interval", "60")
        with spawn(*words, cwd=tmp_path, redis_url=redis_server.url, **options) as top, contextlib.ExitStack() as ended:
            ended.callback(top.kill)
            process = psutil.Process(top.pid)
            eventually(lambda: "q quits" in last_screen(bytes(printed)), 20)
            for _ in range(2):
                top.send_signal(signal.SIGTSTP)
                eventually(lambda: process.status() == psutil.STATUS_STOPPED)
                assert termios.tcgetattr(slave) == before
                eventually(lambda: bytes(printed).count(LEAVE_SCREEN) == bytes(printed).count(ENTER_SCREEN))
                until_drawn(printed, len(printed), lambda: top.send_signal(signal.SIGCONT))
                assert not termios.tcgetattr(slave)[3] & termios.ICANON
            os.write(master, b"q")
            assert top.wait(20) == 0
        assert termios.tcgetattr(slave) == before


def test_a_terminal_without_control_sequences_gets_one_update_after_the_other(
    tmp_path: Path, redis_server: AnyServer
) -> None:
    with terminal_of(80, 24) as (_, slave, printed):
        options = {"stdin": slave, "stdout": slave, "stderr": slave, "env": {"TERM": "dumb"}}
        words = ("top", "--count", "2", "--interval", "0.1")
        with spawn(*words, cwd=tmp_path, redis_url=redis_server.url, **options) as top:
            assert top.wait(60) == 0
        eventually(lambda: bytes(printed).count(b"supervisor top  ") == 2)


def test_it_ends_with_its_terminal(tmp_path: Path, redis_server: AnyServer) -> None:
    master, slave = os.openpty()
    options = {"stdin": slave, "stdout": slave, "stderr": slave, "env": {"TERM": "xterm"}}
    top = spawn("top", "--interval", "60", cwd=tmp_path, redis_url=redis_server.url, **options)
    with top, contextlib.ExitStack() as ended:
        ended.callback(top.kill)
        os.close(slave)
        printed = b""
        while b"q quits" not in printed:
            printed += os.read(master, 65536)
        os.close(master)
        assert top.wait(20) in (0, 1)
