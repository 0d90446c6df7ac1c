"""Answers HEAD wherever GET is answered: with the same status and headers, and without the body."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class AnswerHead:
    """Hand a HEAD to the route of GET, and send the beginning of its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}
        endless = False

        async def only_head(message: Message) -> None:
            nonlocal endless
            if message["type"] == "http.response.start":
                scope["route"] = as_get.get("route")
                await send(message)
                await send({"type": "http.response.body", "body": b""})
            elif message.get("more_body"):  # a stream that goes on until its reader leaves
                endless = True
                task.cancel()

        task = asyncio.ensure_future(self._app(as_get, receive, only_head))
        try:
            await task
        except asyncio.CancelledError:
            if not endless:
                raise
