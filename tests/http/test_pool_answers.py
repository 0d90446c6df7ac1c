"""HTTP answers to changes of the pool when the arbiter's answer is lost or late, and when no arbiter runs."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.http.service import Service, problem
from tests.support.waiting import eventually

COMMANDS: dict[str, Any] = {"pause": None, "resume": None, "restart": None, "scale": {"workers": 2}}
WORKERS = {"scale": 2}
#: Where each problem says to look.
PLACES = {"pause": "`paused`", "resume": "`paused`", "restart": "`last_operation`", "scale": "`workers`"}


class Mute(threading.Thread):
    """Takes commands as an arbiter does, and closes each connection without an answer. A change is its last one."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.change = ""
        self.listener = listening(path)

    def run(self) -> None:
        with self.listener:
            while not self.change:
                connection, _ = self.listener.accept()
                with connection, connection.makefile() as reader:
                    line = reader.readline()  # empty: the client has not waited
                    command = json.loads(line)["cmd"] if line else ""
                    self.change = command if command in COMMANDS else ""


def listening(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    return listener


@contextmanager
def full(path: Path) -> Iterator[None]:
    """Fill the queue of a listener that takes no connection."""
    with ExitStack() as clients:
        for _ in range(20):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                yield
                return
    raise AssertionError("its queue has no end")


@pytest.fixture
def service(redis_url: str, start_service: Callable[..., Service]) -> Service:
    return start_service(redis_url, config='[log]\nformat = "json"')


@pytest.fixture
def control(tmp_path: Path, service: Service) -> Path:
    """Where the service of this test looks for an arbiter."""
    return tmp_path / "service0" / ".supervisor" / "control.sock"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_that_is_lost_leaves_the_outcome_unknown(service: Service, control: Path, command: str) -> None:
    """Also where nobody listens any more when the command is sent again."""
    arbiter = Mute(control)
    arbiter.start()
    told = problem(service.http.post(f"/v1/pool:{command}", json=COMMANDS[command]), 503, "outcome-unknown")
    assert arbiter.change == command
    assert PLACES[command] in told["detail"] and "/health" in told["detail"]
    [line] = eventually(lambda: [line for line in map(json.loads, service.log.splitlines()) if "action" in line])
    assert (line["action"], line["outcome"], line.get("workers")) == (
        f"pool:{command}",
        "unknown",
        WORKERS.get(command),
    )


def test_an_answer_that_is_late_leaves_the_outcome_unknown(service: Service, control: Path) -> None:
    with closing(listening(control)):
        told = problem(service.http.post("/v1/pool:pause"), 503, "outcome-unknown")
    assert "no answer in time" in told["detail"]


def test_where_nobody_takes_the_command_there_is_no_pool(service: Service, control: Path) -> None:
    problem(service.http.post("/v1/pool:pause"), 503, "no-pool")
    listening(control).close()
    told = problem(service.http.post("/v1/pool:pause"), 503, "no-pool")
    assert "its supervisor is gone" in told["detail"]
    with closing(listening(control)), full(control):
        told = problem(service.http.post("/v1/pool:pause"), 503, "no-pool")
    assert "no answer in time" in told["detail"]
    assert "change over HTTP" not in service.log
