"""HTTP producers to compare with: what one writes with FastAPI and redis-py and no more.

`uvicorn benchmarks.http_peers:app`, with PEER_URL naming the Redis. `/bare` answers without Redis,
`/xadd` awaits one XADD a request.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, EmailStr
from redis.asyncio import Redis


class NewUser(BaseModel):
    """The same body as that of `POST /users`."""

    email: EmailStr


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for the app."""
    async with Redis.from_url(os.environ["PEER_URL"]) as redis:
        app.state.redis = redis
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/bare", status_code=202)
async def bare(user: NewUser) -> dict[str, str]:
    """Validate and answer."""
    return {"id": user.email}


@app.post("/xadd", status_code=202)
async def xadd(user: NewUser, request: Request) -> dict[str, Any]:
    """Validate, store, answer."""
    entry: bytes = await request.app.state.redis.xadd("events:user_created", {"email": user.email})
    return {"id": entry.decode()}
