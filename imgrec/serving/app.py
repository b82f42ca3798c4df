"""The server's requests and their answers, as an ASGI application."""

import asyncio
import os
import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from imgrec.errors import CheckpointError, DataError, ImgrecError, printable, shorten
from imgrec.files import as_utf8
from imgrec.inference.device import is_out_of_memory
from imgrec.inference.predictor import Prediction
from imgrec.serving.access import find_intruder, is_allowed
from imgrec.serving.batcher import Batcher, QueueFull
from imgrec.serving.limits import (
    RETRY,
    Limits,
    Refused,
    Upload,
    check_image,
    read_uploads,
    refuse_for_memory,
    refuse_unreadable,
)
from imgrec.serving.metrics import CONTENT_TYPE, ServerMetrics
from imgrec.serving.middleware import Counted, Drained
from imgrec.serving.openapi import api_description
from imgrec.serving.page import PAGE_HEADERS, drop_page
from imgrec.serving.recognizer import Added, Recognizer
from imgrec.serving.responses import fail, json_response, leave, refuse, refuse_full, refuse_route


@dataclass(frozen=True)
class ServerSettings:
    """Of a server; conf/serve.yaml says what each means."""

    limits: Limits
    top_k: int
    batch_size: int
    max_wait_s: float
    max_queue: int
    network_threads: int
    token: str | None
    local_host: str | None = None  # where only this machine reaches the server: the host= that it listens at


class ImageJob(NamedTuple):
    """An image on its way to the network that it was read for."""

    recognizer: Recognizer
    image: Any
    top_k: int


def answer_jobs(jobs: list[ImageJob]) -> list[Prediction | Exception]:
    """The predictions of a batch: one call of each network, of which there are two while a reload goes on."""
    return [answer for _, same in groupby(jobs, key=lambda job: id(job.recognizer)) for answer in _answer_group(list(same))]


def _answer_group(group: list[ImageJob]) -> Sequence[Prediction | Exception]:
    """Where the network fails each image is tried alone, as of others' images none may lose its answer."""
    try:
        return group[0].recognizer.answer([job.image for job in group], max(job.top_k for job in group))
    except Exception as error:
        return [error] if len(group) == 1 else [answer for job in group for answer in _answer_group([job])]


class Service:
    """A recognizer with its queue. load: reads the checkpoint again, for a reload. start_thread: is called in each network thread."""

    def __init__(
        self,
        recognizer: Recognizer,
        settings: ServerSettings,
        *,
        load: Callable[[], Recognizer],
        start_thread: Callable[[], object] = lambda: None,
    ) -> None:
        self.recognizer, self.settings = recognizer, settings
        self.stopping = False
        self.answered = 0  # images
        self._load, self._reloading = load, asyncio.Lock()
        self.metrics = ServerMetrics(lambda: self._batcher.admitted)
        self._batcher: Batcher[ImageJob, Prediction | Exception] = Batcher(
            answer_jobs,
            batch_size=settings.batch_size,
            max_wait_s=settings.max_wait_s,
            max_admitted=settings.max_queue,
            threads=settings.network_threads,
            parts=2 * settings.network_threads if recognizer.device == "cpu" else settings.network_threads,
            start_thread=start_thread,
            observe=self.metrics.observe_batch,
        )
        self._decoders = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "imgrec-decoder")

    def app(self) -> ASGIApp:
        """The application, which counts its requests."""
        endpoints = {
            ("GET", "/"): self._page,
            ("POST", "/predict"): self._predict,
            ("POST", "/reload"): self._reload,
            ("GET", "/openapi.json"): self._openapi,
            ("GET", "/healthz"): self._health,
            ("GET", "/readyz"): self._ready,
            ("GET", "/metrics"): self._metrics,
        }
        routes = [Route(path, self._guarded(endpoint), methods=[method]) for (method, path), endpoint in endpoints.items()]
        starlette = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={
                Refused: refuse,
                QueueFull: refuse_full,
                HTTPException: partial(refuse_route, [route.path for route in routes]),
                ClientDisconnect: leave,
                Exception: fail,
            },
        )
        starlette.router.redirect_slashes = False
        drained = Drained(starlette, timeout_s=self.settings.limits.body_timeout_s, is_closing=lambda: self.stopping)
        return Counted(drained, self.metrics, {route.path for route in routes})

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Without a token, only for those who mean this server."""

        async def guarded(request: Request) -> Response:
            if self.settings.token is None and (line := find_intruder(request.method, request.headers, self.settings.local_host)):
                raise Refused(403, line)
            try:
                return await endpoint(request)
            except asyncio.CancelledError as error:  # only a stop that waits no longer cancels a request
                raise Refused(503, "the server stopped before it had the answer. Try again.", RETRY) from error
            except Exception as error:
                if not isinstance(error, Refused) and is_out_of_memory(error):  # a refusal may have the words of a file's name
                    raise refuse_for_memory() from error
                raise

        return guarded

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the decoder does that too, but threads share their filters
            self._batcher.start()
            yield
            await self._batcher.close()
            self._decoders.shutdown(cancel_futures=True)  # of requests that the stop did not wait for

    async def _predict(self, request: Request) -> Response:
        self._check_token(request)
        if self.stopping:
            raise Refused(503, "the server is stopping. Try again.", RETRY)
        start, recognizer = time.perf_counter(), self.recognizer
        top_k = self._top_k(request, len(recognizer.classes))
        with self._batcher.admit() as admission:
            uploads = await read_uploads(request, self.settings.limits)
            admission.grow(len(uploads) - 1)
            jobs = [ImageJob(recognizer, image, top_k) for image in await self._read_all(recognizer, uploads)]
            predictions = await admission.answer(jobs)
        answers = [
            _prediction(upload, prediction, top_k, recognizer.adds)
            for upload, prediction in zip(uploads, predictions, strict=True)
        ]
        self.answered += len(answers)
        self.metrics.observe_answer(len(answers), time.perf_counter() - start)
        return json_response({"weights": recognizer.weights, "predictions": answers})

    async def _read_all(self, recognizer: Recognizer, uploads: Sequence[Upload]) -> list[Any]:
        """Each image, or what the first that cannot be read raises; when all are read, as until then they take memory and threads."""
        loop = asyncio.get_running_loop()
        reading = [loop.run_in_executor(self._decoders, self._read, recognizer, upload) for upload in uploads]
        images = await asyncio.gather(*reading, return_exceptions=True)
        for image in images:
            if isinstance(image, BaseException):
                raise image
        return images

    def _limits(self, recognizer: Recognizer) -> Limits:
        limits = self.settings.limits
        return replace(limits, max_pixels=min(limits.max_pixels, recognizer.max_pixels))

    def _read(self, recognizer: Recognizer, upload: Upload) -> Any:
        check_image(upload, self._limits(recognizer))
        try:
            return recognizer.read(upload.content, str(upload))
        except DataError as error:
            raise refuse_unreadable(error, upload) from error

    def _top_k(self, request: Request, classes: int) -> int:
        query = request.query_params
        if unknown := [name for name in query if name != "top_k"]:
            raise Refused(400, f"there is no parameter {shorten(unknown[0])}. There is top_k.")
        given = query.getlist("top_k")
        if not given:
            return min(self.settings.top_k, classes)
        value = given[0]
        if len(given) > 1 or not (value.isascii() and value.isdecimal() and len(value) < 10) or int(value) < 1:
            raise Refused(400, f"top_k={shorten(value)}: expected one integer, 1 or more. Type ?top_k=3.")
        return min(int(value), classes)

    async def _reload(self, request: Request) -> Response:
        if self.settings.token is None:
            raise Refused(403, "only a server with a token reloads. Start it with token_file=FILE.")
        self._check_token(request)
        if self._reloading.locked():
            raise Refused(409, "a reload is under way. Wait for its answer.")
        async with self._reloading:
            try:
                self.recognizer = await asyncio.to_thread(self._load)
            except ImgrecError as error:
                self.metrics.reloads.labels("refused").inc()
                raise Refused(409, f"{error} The network from before stays.") from error
        self.metrics.reloads.labels("done").inc()
        return json_response({"weights": self.recognizer.weights, "classes": len(self.recognizer.classes)})

    async def _page(self, request: Request) -> Response:
        page = drop_page(self.recognizer.classes, self.settings.limits, needs_token=self.settings.token is not None)
        return Response(page, media_type="text/html", headers=PAGE_HEADERS)

    async def _openapi(self, request: Request) -> Response:
        limits, needs_token = self._limits(self.recognizer), self.settings.token is not None
        return json_response(api_description(limits, self.recognizer.adds, needs_token))

    async def _health(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        return json_response({"status": "stopping"}, 503) if self.stopping else json_response({"status": "ready"})

    async def _metrics(self, request: Request) -> Response:
        self._check_token(request)
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    def _check_token(self, request: Request) -> None:
        if not is_allowed(request.headers.get("authorization"), self.settings.token):
            line = "this needs the server's token. Type curl -H 'Authorization: Bearer TOKEN'."
            raise Refused(401, line, {"WWW-Authenticate": "Bearer"})


def _prediction(upload: Upload, prediction: Prediction | Exception, top_k: int, adds: Added) -> dict[str, Any]:
    """The JSON of one image's answer; raises what the network raised."""
    if isinstance(prediction, DataError):
        raise refuse_unreadable(prediction, upload)
    if isinstance(prediction, CheckpointError):
        print(printable(f"imgrec: {upload}: {prediction}"), file=sys.stderr, flush=True)
        raise Refused(500, f"the network has no answer to {upload}. The server's log says why.")
    if isinstance(prediction, Exception):
        raise prediction
    top = [{"class": as_utf8(name), "probability": probability} for name, probability in prediction.top[:top_k]]
    answer: dict[str, Any] = {"file": None if upload.name is None else shorten(upload.name), **top[0], "top": top}
    if adds == "set":
        answer["set"] = list(map(as_utf8, prediction.classes or []))
    elif adds == "answered":
        answer["answered"] = prediction.answered
    return answer
