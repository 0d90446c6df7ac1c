"""Processes that handlers fork: signals reach them alone, and the worker goes on."""

from collections.abc import Callable
from typing import Any

import pytest

from supervisor.errors import EXIT_OK
from tests.support.pool import Pool
from tests.support.recording import RECORD, seen
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
TERMINATE = """
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
        child.terminate()
        child.join(20)
        record(f"exit{child.exitcode}")
"""
INTERRUPT = """
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(tell, b"x")
                while True:  # Python does not notice a signal that comes just before a sleep
                    time.sleep(0.01)
            except KeyboardInterrupt:
                os._exit(7)
        os.read(ready, 1)
        os.kill(pid, signal.SIGINT)
        record(f"exit{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")
"""
POOL = """
        with multiprocessing.get_context("fork").Pool(2) as children:
            total = sum(children.map(abs, range(10)))
        children.join()
        record(f"exit{total}")
"""


@pytest.mark.parametrize("kind", ["async def", "def"])
@pytest.mark.parametrize(
    ("body", "expected"), [(TERMINATE, "exit-15"), (INTERRUPT, "exit7"), (POOL, "exit45")], ids=["term", "int", "pool"]
)
def test_a_child_of_a_handler_gets_its_signals_itself(
    start_pool: StartPool, redis_server: Any, kind: str, body: str, expected: str
) -> None:
    code = f"""
    import multiprocessing, signal
    @handler("events", group="workers")
    {kind} handle(message: Message) -> None:{body}
"""
    pool = start_pool(RECORD + code, redis_url=redis_server.url, workers=1)
    redis_server.sync().xadd("events", {"n": "1"})
    eventually(lambda: seen(pool)[expected] == 1, 40)
    assert pool.worker(0)["restarts"] == 0 and pool.worker(0)["state"] == "READY"
    assert not pool.events("worker exited")
    assert pool.stop() == EXIT_OK
