"""Around the application: what is counted of its requests, and bodies that are read to their end before a connection is closed."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imgrec.serving.metrics import ServerMetrics


class Counted:
    """An application whose requests are counted by path and status."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, paths: set[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted_send)
        return None


class Drained:
    """An application that reads a body to its end before it refuses it, where the connection is closed after the answer.

    A connection that is closed with bytes unread is reset, and a client that is still sending never sees the answer: Python's
    urllib told of a reset for 20 of 20 bodies that were too large.
    """

    def __init__(self, app: ASGIApp, *, timeout_s: float, is_closing: Callable[[], bool]) -> None:
        self._app, self._timeout_s, self._is_closing = app, timeout_s, is_closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, ended = dict(scope["headers"]), False
        closes = b"close" in headers.get(b"connection", b"").lower() or scope["http_version"] == "1.0"

        async def noted_receive() -> Message:
            nonlocal ended
            message = await receive()
            ended = not message.get("more_body", False)
            return message

        async def drained_send(message: Message) -> None:
            # A client that was too slow is not waited for again, and one that expects a 100 has sent nothing.
            refuses = message["type"] == "http.response.start" and message["status"] != 408 and b"expect" not in headers
            if refuses and (closes or self._is_closing()):
                with suppress(TimeoutError, asyncio.CancelledError):  # the second where a stop waits no longer
                    async with asyncio.timeout(self._timeout_s):
                        while not ended:
                            await noted_receive()
            await send(message)

        await self._app(scope, noted_receive, drained_send)
        return None
