"""Bounds the time of GET routes that ask Redis: a refusal comes within the service's limit.

Each command has a time limit of its own, but a page takes several, and a client of a cluster asks one node after the
other. What changes something has no such limit: an answer must not say that nothing happened when it did.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute


class ReadRoute(APIRoute):
    """A route whose GET is answered within `[api] produce_timeout_ms`."""

    #: How much longer it may take.
    extra_s = 0.0

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        answer = super().get_route_handler()
        if self.methods != {"GET"}:
            return answer

        async def answer_in_time(request: Request) -> Response:
            async with asyncio.timeout(request.app.state.service.limit_s + self.extra_s):
                return await answer(request)

        return answer_in_time
