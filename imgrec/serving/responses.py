"""Answers in JSON, and what a request is told whose answer is an exception."""

import json
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from imgrec.errors import printable, shorten
from imgrec.serving.batcher import QueueFull
from imgrec.serving.limits import HINT, MOST_HEAD, Refused


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """In ASCII, as a file name may hold half a surrogate pair, which no UTF-8 has."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(text, status, {"X-Content-Type-Options": "nosniff", **(headers or {})}, "application/json")


def _error(status: int, line: str, headers: dict[str, str] | None = None) -> Response:
    return json_response({"error": printable(line)}, status, headers)


async def refuse(request: Request, error: Exception) -> Response:
    """With the status and the line of a `Refused`."""
    assert isinstance(error, Refused)
    return _error(error.status, str(error), error.headers)


async def refuse_full(request: Request, error: Exception) -> Response:
    """429, and when there is room again."""
    assert isinstance(error, QueueFull)
    wait = str(error.retry_after_s)
    return _error(429, f"too many images are waiting. Try again in {wait} s.", {"Retry-After": wait})


async def refuse_route(paths: Sequence[str], request: Request, error: Exception) -> Response:
    """404 or 405; paths: those that there are."""
    assert isinstance(error, HTTPException)
    path, headers = shorten(request.url.path), dict(error.headers or {})
    if error.status_code == 405:
        return _error(405, f"{shorten(request.method)} {path}: expected {headers.get('Allow')}.", headers)
    return _error(error.status_code, f"{path}: there is no such path. There are: {', '.join(paths)}.", headers)


async def leave(request: Request, error: Exception) -> Response:
    """For a client that is gone: nobody reads it, the status is what the metrics show."""
    return _error(400, "the body ended too early.")


async def fail(request: Request, error: Exception) -> Response:
    """A fault of the server, whose traceback is in its log."""
    return _error(500, "the server failed. Its log says why.")


def refuse_head() -> Response:
    """What is answered where no application was asked."""
    return _error(400, f"this is no HTTP request, or its head has more than {MOST_HEAD:,} bytes. {HINT}")
