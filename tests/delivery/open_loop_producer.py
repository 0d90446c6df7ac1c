"""An open-loop producer: it publishes at its pace whatever the pool and Redis do, and keeps the replies.

Each message has a number `n`. A message whose XADD was answered with an id is acknowledged; one that
was refused, or whose answer was lost, has only been attempted. Nothing is ever sent twice.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry

#: How often it checks what is due.
TICK_S = 0.01
#: After a stall, what is due is sent in pipelines of this length.
PIPELINE_MAX = 200
ANSWER_LIMIT_S = 2.0

Fields = Callable[[int, random.Random], dict[str, Any]]


def no_more_fields(_n: int, _rng: random.Random) -> dict[str, Any]:
    """A message has its number and its work, nothing else."""
    return {}


class Load:
    """`rate` messages a second for `for_s` seconds, from another thread."""

    def __init__(
        self, url: str, seed: int, rate: float, for_s: float, *, stream: str = "events", work_ms: float = 2.0,
        fields: Fields = no_more_fields,
    ) -> None:  # fmt: skip
        """`fields` says what else a message carries; it is asked in the order of their numbers, so the seed decides."""
        self.url, self.rate, self.for_s, self._stream = url, rate, for_s, stream
        self._rng = random.Random(seed)
        self._work_ms, self._fields = work_ms, fields
        #: Message -> when it was acknowledged, None for never.
        self.attempts: dict[int, int | None] = {}
        #: Message -> the id that Redis gave it.
        self.ids: dict[int, str] = {}
        #: Message -> what it carried, but for its padding.
        self.sent: dict[int, dict[str, Any]] = {}
        #: The different errors that were returned or raised.
        self.errors: dict[str, int] = {}
        self.began_ns = 0
        self.ended_ns = 0
        self._ended = threading.Event()
        self._bug: BaseException | None = None
        self._thread = threading.Thread(target=self._guard, name="load", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.began_ns = time.monotonic_ns()
        self._thread.start()

    def publish(self, count: int) -> None:
        """Publish `count` messages at once, in this thread, instead of the load that `start` begins."""
        self.began_ns = time.monotonic_ns()
        with self._client() as client:
            self._send(client, count)
        self.ended_ns = time.monotonic_ns()

    def end(self) -> None:
        """Publish nothing more, and wait for the replies to what was sent."""
        self._ended.set()
        self.join()

    def join(self) -> None:
        """Wait until its time is over. Raises the error that ended its thread."""
        if self._thread.ident is None:
            return
        self._thread.join(self.for_s + 60)
        assert not self._thread.is_alive(), "the load has ended"
        if self._bug is not None:
            raise self._bug

    def wait_until(self, elapsed_s: float) -> None:
        """Wait until it has been publishing for that long: the time itself is the point."""
        self._ended.wait(max(0.0, elapsed_s - self.elapsed_s))

    @property
    def acked(self) -> int:
        """How many were acknowledged so far."""
        return len(self.ids)

    @property
    def elapsed_s(self) -> float:
        """How long it has been publishing."""
        return (time.monotonic_ns() - self.began_ns) / 1e9

    def numbers(self, **fields: Any) -> set[int]:
        """The messages that carried these fields."""
        return {n for n, sent in self.sent.items() if fields.items() <= sent.items()}

    def _guard(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._bug = error
        self.ended_ns = time.monotonic_ns()

    def _run(self) -> None:
        with self._client() as client:
            while not self._ended.wait(TICK_S) and self.elapsed_s < self.for_s:
                due = int(self.elapsed_s * self.rate) - len(self.attempts)
                while due > 0 and not self._ended.is_set():
                    self._send(client, min(due, PIPELINE_MAX))
                    due -= PIPELINE_MAX

    def _client(self) -> redis_py.Redis:
        """One that never sends anything twice."""
        return redis_py.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=ANSWER_LIMIT_S)

    def _send(self, client: redis_py.Redis, count: int) -> None:
        first = len(self.attempts)
        numbers = range(first, first + count)
        with client.pipeline(transaction=False) as pipeline:
            for n in numbers:
                self.sent[n] = {"work_ms": self._work_ms} | self._fields(n, self._rng)
                pipeline.xadd(self._stream, {"n": n, "pad": "x" * self._rng.randint(0, 200)} | self.sent[n])
                self.attempts[n] = None
            try:
                answers = pipeline.execute(raise_on_error=False)
            except (redis_py.RedisError, OSError) as error:
                answers = [error] * count
        now_ns = time.monotonic_ns()
        for n, answer in zip(numbers, answers, strict=True):
            if isinstance(answer, Exception):
                text = f"{type(answer).__name__}: {answer}"
                self.errors[text] = self.errors.get(text, 0) + 1
            else:
                self.attempts[n] = now_ns
                self.ids[n] = answer.decode()
