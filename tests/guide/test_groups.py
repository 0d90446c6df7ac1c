"""Step four of the guide: groups of workers share a stream; what fails is pending until it succeeds."""

import collections
from pathlib import Path

from tests.support.pool import Pool
from tests.support.waiting import eventually

STREAM = "events:user_created"
COUNT = 200
HANDLERS = """
    import os, time
    from pathlib import Path
    from supervisor import handler

    def note(what, group, message):
        with open(f"{what}.{os.getpid()}", "a") as file:
            file.write(f"{group} {message['n']}\\n")

    @handler("events:user_created", group="email_workers", max_deliveries=1000, retry_base_s=0.1, retry_max_s=0.1)
    async def mail(message: dict[str, str]) -> None:
        note("tried", "email_workers", message)
        if message["n"] == "7" and not Path("smtp_works").exists():
            raise ConnectionError("the mail server is down")
        time.sleep(0.005)
        note("done", "email_workers", message)

    @handler("events:user_created", group="analytics")
    async def count(message: dict[str, str]) -> None:
        note("done", "analytics", message)
"""


def test_each_group_handles_each_message_once_and_retries_what_fails(start_pool, redis_server) -> None:
    pool: Pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=3)
    with redis_server.sync() as redis:
        pipe = redis.pipeline()
        for n in range(COUNT):
            pipe.xadd(STREAM, {"n": n})
        ids = pipe.execute()

        eventually(lambda: len(lines(pool.folder, "done")) == 2 * COUNT - 1, what="all but the failing one is done")
        eventually(lambda: lines(pool.folder, "tried")["email_workers 7"] >= 3, what="it is tried again and again")

        def pending() -> list[bytes]:
            return [entry["message_id"] for entry in redis.xpending_range(STREAM, "email_workers", "-", "+", 10)]

        eventually(lambda: pending() == [ids[7]], what="what was done is acked, and only that")
        assert "email_workers 7" not in lines(pool.folder, "done")

        (pool.folder / "smtp_works").touch()
        eventually(lambda: redis.xpending(STREAM, "email_workers")["pending"] == 0, what="the retry succeeds")
        eventually(lambda: redis.xpending(STREAM, "analytics")["pending"] == 0)

    done = lines(pool.folder, "done")
    assert done == {f"{group} {n}": 1 for group in ("email_workers", "analytics") for n in range(COUNT)}
    workers = [path.suffix for path in pool.folder.glob("done.*")]
    assert len(workers) == 3, "a worker had nothing to do"


def lines(folder: Path, what: str) -> collections.Counter[str]:
    return collections.Counter(line for path in folder.glob(f"{what}.*") for line in path.read_text().splitlines())
