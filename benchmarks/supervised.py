"""What each supervisor runs in `benchmarks.supervisors`: the same small worker in the form that it wants.

A worker that is ready appends `ready <pid> <monotonic ns>` to the file `runs` of its folder. The folder's
files `crash` and `block` change what it does: leave 0.3 s after its start, block its event loop for ever.
"""

#: Is imported by all: `ready()` is called in the worker when it serves, `obey()` on its event loop.
COMMON = """
import asyncio, os, threading, time
from pathlib import Path

FOLDER = Path(__file__).parent

def note(word):
    fd = os.open(FOLDER / "runs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{word} {os.getpid()} {time.monotonic_ns()}\\n".encode())
    os.close(fd)

def crash_soon():
    if (FOLDER / "crash").exists():
        threading.Timer(0.3, os._exit, [3]).start()

def ready():
    note("ready")
    crash_soon()

async def obey():
    while True:
        await asyncio.sleep(0.02)
        blocked = FOLDER / f"block.{os.getpid()}"
        if blocked.exists():
            blocked.rename(FOLDER / f"blocked.{os.getpid()}")
            time.sleep(3600)
"""
ASGI = """
import asyncio
from common import obey, ready

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        app.task = asyncio.create_task(obey())
        ready()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        app.task.cancel()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
CELERY = """
import os
from celery import Celery
from celery.signals import worker_process_init
from common import ready

app = Celery("app", broker=os.environ["PEER_URL"])
worker_process_init.connect(lambda **_: ready(), weak=False)

@app.task
def work():
    pass
"""
TASKIQ = """
import asyncio, os
from taskiq import TaskiqEvents
from taskiq_redis import ListQueueBroker
from common import obey, ready

broker = ListQueueBroker(os.environ["PEER_URL"])

@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def started(state):
    state.task = asyncio.create_task(obey())
    ready()

@broker.task
async def work():
    pass
"""
DRAMATIQ = """
import os
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from common import ready

class Ready(dramatiq.Middleware):
    def after_worker_boot(self, broker, worker):
        ready()

broker = RedisBroker(url=os.environ["PEER_URL"], middleware=[Ready()])
dramatiq.set_broker(broker)

@dramatiq.actor
def work():
    pass
"""
#: Forked from the arbiter, which has imported this: a timer of the kernel's, whose signal nobody handles, is the crash.
POOL = """
import os, signal, time
from common import FOLDER, note
from supervisor import Message, handler

def after_fork():
    if (FOLDER / "crash").exists():
        signal.setitimer(signal.ITIMER_REAL, 0.3)

os.register_at_fork(after_in_child=after_fork)

@handler("events:bench", group="supervisors")
async def handle(message: Message) -> None:
    note("blocked")
    time.sleep(3600)
"""
