"""What is no HTTP: one short line, which says nothing of the server, and nothing in its log."""

import asyncio
import json
from typing import Any

import pytest
import uvicorn
from served import service
from uvicorn.server import ServerState

from imgrec.serving.server import patient_protocol

HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
REFUSAL = "this is no HTTP request, or its head has more than 16,384 bytes."
BROKEN = {
    "no HTTP": [b"\x00\xff nonsense\r\n\r\n"],
    "a long head": [HEAD + b"A: " + b"a" * 2**14],
    "TLS": [bytes.fromhex("16030100a5010000a10303") + bytes(160)],
    "no host": [b"GET /healthz HTTP/1.1\r\n\r\n"],
    "a length that is no number": [HEAD + b"Content-Length: abc\r\n\r\n"],
    "two lengths": [HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"],
    "letters that are no ASCII": ["GET /ü HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()],
    "a chunk without a length": [HEAD + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
    "a later one": [HEAD + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz\r\n\r\n"],
}


def told(parts: list[bytes], *, answers: bool = False) -> tuple[bytes, list[Any]]:
    """What a connection answers to bytes that are sent one after another, and the errors of the event loop.

    answers: the JSON of an answer is waited for before the last part.
    """
    errors: list[Any] = []

    async def talk() -> bytes:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: errors.append(context))
        config = uvicorn.Config(
            service().app(), http=patient_protocol(10), server_header=False, access_log=False, log_level="error"
        )
        config.load()
        state = ServerState()
        server = await loop.create_server(
            lambda: config.http_protocol_class(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )  # type: ignore[call-arg, operator]
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            answer = b""
            for part in parts:
                answer += await reader.readuntil(b"}") if answers and part is parts[-1] else b""
                writer.write(part)
                await writer.drain()
            answer += await reader.read()
            writer.close()
        return answer

    return asyncio.run(asyncio.wait_for(talk(), 60)), errors


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_http_is_answered_in_a_line(what: str) -> None:
    answer, errors = told(BROKEN[what])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\ncontent-type: application/json\r\n" in head
    assert json.loads(body)["error"].startswith(REFUSAL)
    assert not any(word in head.lower() for word in (b"server", b"uvicorn", b"python"))
    assert errors == []


def test_a_body_that_goes_wrong_after_the_answer_ends_the_connection() -> None:
    answer, errors = told([HEAD + b"Content-Type: text/x\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz\r\n\r\n"], answers=True)
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert errors == []
