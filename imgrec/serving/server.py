"""The process around the application: uvicorn at a socket that is bound before anything is loaded, and a stop that answers what was accepted."""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from imgrec.distributed.signals import handlers_installed
from imgrec.serving.address import naming_address
from imgrec.serving.app import Service
from imgrec.serving.limits import MOST_HEAD
from imgrec.serving.responses import refuse_head

BACKLOG = 2048  # connections that the kernel holds until they are accepted
# Connections that asyncio accepts before it looks at any. Where files run out it tries so many again, with a traceback for each:
# with 2048 at once, 1,000 idle connections wrote 387,556 lines in a minute (Python 3.11.7, ulimit -n 200).
ACCEPTS_AT_ONCE = 16
# That are read from a connection before others are served. With asyncio's 256 KB a body in chunks of one byte, for each of which h11
# takes 14 us, held up all others for 0.6 s at a time, and now for 0.03 s. Whole bodies take about 1 ms more for each megabyte.
READ_BYTES = 2**14
SPARE_FILES = 4 * ACCEPTS_AT_ONCE + 64  # accepted and not yet counted, and what this process opens itself


def patient_protocol(patience_s: float) -> type[H11Protocol]:
    """uvicorn's, with three more limits and half-closed connections.

    It also closes connections where no request begins for `patience_s` (uvicorn's own timeout ends with the first byte, and begins
    with the first answer), those whose client does not read its answers for as long, and those beyond the open files it may have.
    A client that closes its half of the connection after its request is answered; uvicorn takes it as gone.
    """

    class PatientProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _sends_no_more = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.max_size = READ_BYTES  # type: ignore[attr-defined]
            self._wait_for_request(None)
            if len(self.connections) > resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES:
                transport.close()

        def on_response_complete(self) -> None:
            answered = self.cycle
            super().on_response_complete()  # begins the next request where its head has come
            self._wait_for_request(answered)
            if self._sends_no_more and not self._is_answering():
                self.transport.close()

        def eof_received(self) -> bool:  # type: ignore[override]
            """Whether the connection stays open."""
            self._sends_no_more = True
            return self._is_answering()

        def send_400_response(self, msg: str) -> None:
            """To what is no HTTP; where a request was answered before its body went wrong there is no other answer to send."""
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                answer = refuse_head()
                headers = [*answer.raw_headers, (b"connection", b"close")]
                head = h11.Response(status_code=answer.status_code, headers=headers, reason=STATUS_PHRASES[answer.status_code])
                for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _is_answering(self) -> bool:
            """Whether a whole request has come that has no answer yet."""
            return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(patience_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self._timer, self._unread):
                if timer is not None:
                    timer.cancel()

        def _wait_for_request(self, answered: Any) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_later(patience_s, self._close_idle, answered)

        def _close_idle(self, answered: Any) -> None:
            if self.cycle is answered:
                self.transport.close()  # when what is written has been read
                self._timer = self.loop.call_later(patience_s, self.transport.abort)

    return PatientProtocol


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started, self._on_stop = on_started, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is not None
        with naming_address(*sockets[0].getsockname()[:2]):
            await super().startup(sockets)
            sockets[0].listen(BACKLOG)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves both to the end of the event loop, with a traceback
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()


def run_server(service: Service, opened: socket.socket, *, stop_timeout_s: float, on_started: Callable[[], None]) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; returns when all accepted requests are answered, or after `stop_timeout_s`.

    KeyboardInterrupt for a Ctrl-C while it stops.
    """

    def on_stop() -> None:
        service.stopping = True

    logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # it warns of each form that is none
    config = uvicorn.Config(
        service.app(),
        http=patient_protocol(service.settings.limits.body_timeout_s),
        h11_max_incomplete_event_size=MOST_HEAD,
        log_level="error",  # its warnings tell of each client that speaks no HTTP
        access_log=False,
        server_header=False,
        proxy_headers=False,  # of the client's address, which nothing here asks for
        lifespan="on",
        ws="none",
        loop="asyncio",  # not uvloop, where that is installed: what is said of asyncio above is not so there
        backlog=ACCEPTS_AT_ONCE,
        timeout_graceful_shutdown=max(1, round(stop_timeout_s)),
    )
    server = _Server(config, on_started, on_stop)

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn raises SIGTERM and SIGINT again when it has stopped, which would end the process with their exit codes.
    with handlers_installed(stop):
        if signal.getsignal(signal.SIGUSR1) is stop:  # which stop a training, not a server
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        server.run(sockets=[opened])
    if server.force_exit:  # by Ctrl-C while it stopped: not all that was accepted is answered
        raise KeyboardInterrupt
