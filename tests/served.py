"""The server in one process for tests, without sockets: ASGI messages in, status, headers and JSON out."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from image_files import encode, picture

from imgrec.inference.predictor import Prediction
from imgrec.serving.app import ServerSettings, Service
from imgrec.serving.limits import Limits

PNG = encode(picture(0, 8, 6), "PNG")
LIMITS = Limits(
    max_images=4, max_body_bytes=20_000, max_pixels=100, formats=("jpeg", "png", "webp", "gif", "bmp"), body_timeout_s=10
)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Echo:
    """A recognizer whose class names say which of them answered; an image is its file's size."""

    file, device, max_pixels = "echo.ckpt", "cpu", 10**9

    def __init__(self, name: str = "old", wait: Callable[[], object] = lambda: None, adds: Any = None) -> None:
        self.adds = adds
        self.weights = self.name = name
        self.classes = [f"{name} {rank}" for rank in range(3)]
        self.wait = wait

    def read(self, content: bytes, name: str) -> int:
        return len(content)

    def answer(self, images: Any, top_k: int) -> list[Prediction]:
        self.wait()
        top = [(name, 0.5 / 2**rank) for rank, name in enumerate(self.classes)][:top_k]
        return [Prediction(f"{self.name} {size}", 0.5, [(f"{self.name} {size}", 0.5), *top[1:]]) for size in images]


def settings(**changes: Any) -> ServerSettings:
    given = {"limits": LIMITS, "top_k": 2, "batch_size": 4, "max_wait_s": 0.0, "max_queue": 8, "network_threads": 1}
    return ServerSettings(**{**given, "token": None, **changes})


def service(recognizer: Any = None, load: Callable[[], Any] = Echo, **changes: Any) -> Service:
    return Service(recognizer or Echo(), settings(**changes), load=load)


class Client:
    def __init__(self, app: Any) -> None:
        self._app = app
        self._sent: list[dict[str, Any]] = []

    async def send(
        self,
        method: str,
        target: str,
        body: bytes | list[bytes] = b"",
        *,
        ends: bool = True,
        unread: list[Any] | None = None,
        **headers: str,
    ) -> Reply:
        """ends=False: the client sends no more and stays; headers by names with _ for -. unread: is given what was not read when the answer began."""
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.replace("_", "-").lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        }
        parts = [body] if isinstance(body, bytes) else body
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        if ends:
            messages.append({"type": "http.request", "body": b"", "more_body": False})
        self._sent = sent = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            if unread is not None and not sent:
                unread.extend(messages)
            sent.append(message)

        await self._app(scope, receive, send)
        return _reply(sent)

    def reply(self) -> Reply:
        """What was sent to the request that began last, also where it raised an error after that."""
        return _reply(self._sent)

    async def predict(self, body: bytes = PNG, content_type: str = "image/png", query: str = "", **headers: str) -> Reply:
        return await self.send("POST", f"/predict{query}", body, content_type=content_type, **headers)


def _reply(messages: list[dict[str, Any]]) -> Reply:
    start, *bodies = messages
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], headers, b"".join(message.get("body", b"") for message in bodies))


@asynccontextmanager
async def client(served: Service) -> AsyncIterator[Client]:
    """Between the start and the end of the application."""
    app, events = served.app(), asyncio.Queue[dict[str, str]]()
    said = asyncio.Queue[dict[str, str]]()
    events.put_nowait({"type": "lifespan.startup"})
    life = asyncio.create_task(app({"type": "lifespan", "state": {}}, events.get, said.put))  # type: ignore[arg-type]
    assert (await said.get())["type"] == "lifespan.startup.complete"
    try:
        yield Client(app)
    finally:
        events.put_nowait({"type": "lifespan.shutdown"})
        await life


def ask(served: Service, talk: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    """What `talk` returns of a conversation with the server."""

    async def run() -> Any:
        async with client(served) as opened:
            return await asyncio.wait_for(talk(opened), 60)

    return asyncio.run(run())


def form(*files: tuple[str, bytes], boundary: str = "XyZ", field: str = "image") -> tuple[bytes, str]:
    """The body and Content-Type of a form with files."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
