"""`supervisor api` as a process, for tests: started, asked, stopped."""

import os
import subprocess
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import httpx

from tests.cli.run import environment
from tests.support.command_server import SERVICE, Forked, imports_ms
from tests.support.servers import free_port
from tests.support.waiting import eventually

EXAMPLE = Path(__file__).parents[2] / "handlers"
STREAM = "events:user_created"
PROBLEM = "application/problem+json"
HANDLERS = """
from supervisor import handler

@handler("events:user_created", group="mail")
async def mail(message: dict[str, str]) -> None: ...
"""


class Patient(httpx.HTTPTransport):
    """Sends a request again when it was refused because Redis did not answer within the service's 250 ms.

    The server of these tests is up: on a busy machine it is late. Nothing was stored by what is refused so.
    """

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(20):
            answer = super().handle_request(request)
            if answer.status_code != 503 or answer.headers.get("content-type") != PROBLEM:
                return answer
            answer.read()
            if "no answer in time" not in answer.text or "redis-unavailable" not in answer.text:
                return answer
        return answer


def browser(base_url: str) -> httpx.Client:
    """Return a client that verifies no certificates: loading them takes longer than most tests here."""
    return httpx.Client(base_url=base_url, timeout=30, trust_env=False, verify=False)


def example() -> dict[str, Any]:
    """Options of a `Service` that make it the shipped example, with its router."""
    files = {f"handlers/{path.name}": path.read_text() for path in EXAMPLE.glob("*.py")}
    return {"files": files, "config": '[api]\nmax_body_bytes = 1048576\nrouters = ["handlers.http:router"]'}


class Service:
    """The HTTP service alone, in its own folder, on a free loopback port."""

    def __init__(
        self, folder: Path, redis_url: str, *, config: str = "", files: Mapping[str, str] = MappingProxyType({}),
        ready: bool = True, bind: str | None = None,
    ) -> None:  # fmt: skip
        """Start it in a project with these files; with `ready`, wait until it answers.

        `bind` is the address instead of a free port; empty: the one in the configuration.
        """
        for name, text in ({"handlers.py": HANDLERS} | dict(files) | {"config.toml": config}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        self._err = folder / "err"
        self.base_url = f"http://127.0.0.1:{free_port()}"
        self.http = browser(self.base_url)
        self.patient = httpx.Client(
            base_url=self.base_url, timeout=30, trust_env=False, transport=Patient(verify=False)
        )
        bind = self.base_url.removeprefix("http://") if bind is None else bind
        words = ("api", *(("--bind", bind) if bind else ()))
        spared_ms = imports_ms(SERVICE)
        with open(os.devnull, "r+b") as none, self._err.open("wb") as err:
            self.process = Forked(
                words, cwd=folder, env=environment(redis_url), streams=(none, none, err), kind=SERVICE
            )
        #: How long a new interpreter would have taken until it answers; bounds on time are multiples of it.
        self.started_ms = 0.0
        if ready:
            began_s = time.monotonic()
            eventually(self._answers, 30, what=f"{self.base_url} answers")
            self.started_ms = spared_ms + (time.monotonic() - began_s) * 1000

    def stop(self, limit_s: float = 30) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(limit_s)

    @property
    def log(self) -> str:
        """What it has written."""
        return self._err.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self.patient.close()
        try:
            code = self.stop()
            assert code == 0, f"the service exited with {code}\n{self.log}"
            assert "Traceback" not in self.log, self.log
        except (AssertionError, subprocess.TimeoutExpired) as left:
            if error is None:
                raise
            error.add_note(str(left))
        finally:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log
        return self.http.get("/livez").status_code == 200


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The answer's problem document, checked to be a whole one of that kind."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text
    body: dict[str, Any] = answer.json()
    base = f"{answer.request.url.scheme}://{answer.request.headers['host']}"
    assert body["type"] == f"{base}/problems/{kind}"
    assert body["status"] == status
    assert body["title"] and body["detail"]
    assert body["instance"] == answer.request.url.raw_path.partition(b"?")[0].decode()
    assert body["request_id"] == answer.headers["x-request-id"]
    if status == 503:
        assert int(answer.headers["retry-after"]) >= 1
    return body


def timed(http: httpx.Client, method: str, address: str, **options: Any) -> tuple[float, httpx.Response]:
    """(milliseconds, answer)."""
    began_s = time.perf_counter()
    answer = http.request(method, address, **options)
    return (time.perf_counter() - began_s) * 1000, answer
