"""What each worker opens before its first message and closes after its last one."""

from collections.abc import AsyncIterator

from supervisor import worker_lifespan


@worker_lifespan
async def resources() -> AsyncIterator[dict[str, object]]:
    """Yield what handlers find in `context().state`. It runs in each worker, never before the fork."""
    # A database pool, for example (`pip install asyncpg`, and `import asyncpg, os` above):
    #     async with asyncpg.create_pool(os.environ["DATABASE_URL"], max_size=5) as database:
    #         yield {"database": database}
    yield {}
