"""The server as a process: no signal and no reload loses a request, docs/serving.md's examples, and requests of schemathesis."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from image_files import encode, picture
from processes import LIMIT_S, wait_until
from untrained_run import save_untrained_run

from imgrec.serving.access import VARIABLE

pytestmark = pytest.mark.slow
TOKEN = "0123456789abcdef"
PNG = encode(picture(0, 40, 30), "PNG")


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict]:
    request = urllib.request.Request(
        url, body, {"Content-Type": "image/png", "Authorization": f"Bearer {TOKEN}", **headers}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def started(tmp_path, start_command):
    """started(WORD, ...) is the process of a server, its URL and the lines that it printed."""

    def start(*words: str, **saved: Any):
        run = save_untrained_run(tmp_path / "run", **saved)
        process = start_command(
            *(sys.executable, "-m", "imgrec.serve", f"ckpt={run}", "port=0", "device=cpu", *words),
            env={**os.environ, VARIABLE: TOKEN},
        )
        shown = [*iter(process.stdout.readline, "next:\n"), "next:\n", process.stdout.readline()]
        return process, re.search(r"listening at (http://127\.0\.0\.1:\d+)", "".join(shown))[1], shown

    return start


class Load:
    """Clients that ask one image after the other until the server is gone, and what they were answered."""

    def __init__(self, url: str, clients: int = 8) -> None:
        self.found: Counter[tuple[int, str]] = Counter()
        self.lost = 0
        self.enough = threading.Event()
        self._url, self._end = url, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._end.is_set():
            try:
                status, content = post(f"{self._url}/predict", PNG)
            except urllib.error.URLError as error:
                if isinstance(error.reason, ConnectionRefusedError):  # it listens no more
                    return
                self.lost += 1
            except ConnectionError:
                self.lost += 1
            else:
                self.found[status, content.get("weights", "")] += 1
                if self.found.total() >= 50:
                    self.enough.set()

    def end(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def test_the_screen_has_a_line_to_type(started):
    _, url, shown = started("coverage=null")
    assert "10 classes" in shown[0]
    assert shown[3] == f"  curl -H 'Authorization: Bearer TOKEN' -F image=@photo.jpg {url}/predict\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it_with_every_accepted_image_answered_and_exit_code_0(started, number):
    process, url, _ = started()
    load = Load(url)
    assert load.enough.wait(LIMIT_S)
    process.send_signal(number)
    assert process.wait(LIMIT_S) == 0
    load.end()
    assert process.stderr.read() == ""
    assert {status for status, _ in load.found} <= {200, 503}
    answered = int(re.search(r"stopped; (\d+) images answered", process.stdout.read())[1])
    assert answered == sum(count for (status, _), count in load.found.items() if status == 200)


def test_slow_heads_are_given_up_and_refusals_reach_those_who_still_send(started):
    """urllib sends its whole body before it reads, on a connection that is closed after the answer."""
    _, url, _ = started("body_timeout_s=1", "max_body_mb=1")
    for begin in (b"", b"POST /predict HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /"):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=LIMIT_S) as slow:
            slow.sendall(begin)
            while slow.recv(4096):
                pass
    assert [post(f"{url}/predict", bytes(20_000_000))[0] for _ in range(5)] == [413] * 5


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=LIMIT_S)


def head(size: int) -> bytes:
    return (
        f"POST /predict?top_k=1000 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: image/png\r\nContent-Length: {size}\r\n\r\n"
    ).encode()


def received(connection: socket.socket) -> bytes:
    """All of it until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_a_client_that_closes_its_half_of_the_connection_is_answered(started):
    """As `nc -N` and `socat` do; also after requests that it sent without waiting for their answers."""
    _, url, _ = started()
    for count in (1, 3):
        with connect(url) as connection:
            connection.sendall((head(len(PNG)) + PNG) * count)
            connection.shutdown(socket.SHUT_WR)
            assert received(connection).count(b"HTTP/1.1 200 ") == count
    with connect(url) as connection:  # in the middle of an image
        connection.sendall(head(len(PNG)) + PNG[:50])
        connection.shutdown(socket.SHUT_WR)
        assert b" 200 " not in received(connection)
    assert post(f"{url}/predict", PNG)[0] == 200


def test_a_client_that_reads_no_answer_is_given_up(started, tmp_path):
    """More than the kernel holds for it: the names of 1,000 classes, for each of some requests."""
    classes = tuple(f"{number:04d}" + "x" * 2000 for number in range(1000))
    process, url, _ = started("body_timeout_s=1", classes=classes)
    files = Path(f"/proc/{process.pid}/fd")
    before = len(list(files.iterdir()))
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        deaf.sendall((head(len(PNG)) + PNG) * 8)
        wait_until(lambda: len(list(files.iterdir())) > before)
        wait_until(lambda: len(list(files.iterdir())) <= before)
    assert process.stderr is not None
    process.terminate()
    assert (process.wait(LIMIT_S), process.stderr.read()) == (0, "")


@pytest.mark.parametrize(
    ("words", "signals", "code", "said"),
    [
        ((), [signal.SIGTERM, signal.SIGINT], 130, "imgrec: interrupted. Start the same command again.\n"),
        (("stop_timeout_s=1",), [signal.SIGTERM, signal.SIGTERM], 0, "ERROR:    Cancel 1 running task(s)"),
    ],
)
def test_a_stop_that_waits_no_longer_answers_503(started, words, signals, code, said):
    """After the second signal, or stop_timeout_s, for a client that is still sending."""
    process, url, _ = started(*words)
    with connect(url) as connection:
        connection.sendall(head(len(PNG)) + PNG[:50])
        wait_until(lambda: "imgrec_waiting_images 1.0" in get(f"{url}/metrics"))
        process.send_signal(signals[0])
        wait_until(lambda: refuses(url))
        process.send_signal(signals[1])
        assert received(connection).startswith(b"HTTP/1.1 503 ")
    assert process.wait(LIMIT_S) == code
    assert process.stderr.read().startswith(said)


def get(url: str) -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as reply:
        return reply.read().decode()


def refuses(url: str) -> bool:
    try:
        connect(url).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_form_that_is_none_writes_nothing_on_the_screen(started):
    process, url, _ = started()
    broken = b"--XyZ\r\n\0Foo: bar\r\n\r\nx\r\n--XyZ--\r\n"
    assert post(f"{url}/predict", broken, **{"Content-Type": "multipart/form-data; boundary=XyZ"})[0] == 400
    process.terminate()
    assert (process.wait(LIMIT_S), process.stderr.read()) == (0, "")


def test_views_that_the_network_never_saw_are_said(started):
    _, _, shown = started("tta=flip")
    assert "augment.flip=0" in shown[0]


def test_more_connections_than_open_files_are_closed_without_a_word(started):
    process, url, _ = started("body_timeout_s=2")
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (200, 200))
    idle = [socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) for _ in range(500)]
    for connection in idle:
        with connection:
            connection.settimeout(60)
            assert connection.recv(1) == b""
    assert post(f"{url}/predict", PNG)[0] == 200
    process.terminate()
    assert process.wait(LIMIT_S) == 0
    assert process.stderr.read() == ""


def test_a_reload_under_load_loses_no_request(started, tmp_path):
    _, url, _ = started()
    load = Load(url)
    assert load.enough.wait(LIMIT_S)
    save_untrained_run(tmp_path / "run", seed=1)
    status, told = post(f"{url}/reload", b"")
    assert status == 200
    load.enough.clear()
    before = load.found.total()
    while load.found.total() < before + 50:
        assert load.enough.wait(LIMIT_S)
    (tmp_path / "run/checkpoints/best.ckpt").write_bytes(b"no checkpoint")
    assert post(f"{url}/reload", b"")[0] == 409
    load.end()
    assert load.lost == 0
    assert {status for status, _ in load.found} == {200}
    weights = [name for (_, name), count in load.found.items() if count]
    assert len(weights) == 2
    assert told["weights"] in weights


def test_the_examples_of_the_docs(started, tmp_path):
    """With the port of this server in the place of theirs, in a folder with their files."""
    _, url, _ = started("coverage=null")
    for name, form in (("photo.jpg", "JPEG"), ("a.jpg", "JPEG"), ("b.png", "PNG")):
        (tmp_path / name).write_bytes(encode(picture(0, 40, 30), form))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    page = (Path(__file__).parents[1] / "docs/serving.md").read_text().replace("http://127.0.0.1:8000", url)
    page = page.replace("curl ", f"curl --fail-with-body -sS -H 'Authorization: Bearer {TOKEN}' ")
    page = page.replace('{"Content-Type": "image/jpeg"}', f'{{"Content-Type": "image/jpeg", "Authorization": "Bearer {TOKEN}"}}')
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    typed = [line for kind, block in blocks if kind == "sh" for line in block.splitlines() if line.startswith("curl")]
    assert len(typed) == 5
    (tmp_path / "photos").mkdir()
    for name in ("a, b;.jpg", "c.jpg"):
        (tmp_path / "photos" / name).write_bytes((tmp_path / "photo.jpg").read_bytes())
    (folder,) = [line for kind, block in blocks if kind == "sh" for line in block.splitlines() if line.startswith("find")]
    said = subprocess.run(folder, shell=True, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert sorted(json.loads(line)["predictions"][0]["file"] for line in said.splitlines()) == ["a, b;.jpg", "c.jpg"]
    answers = [
        json.loads(subprocess.run(line, shell=True, check=True, capture_output=True, cwd=tmp_path).stdout) for line in typed
    ]
    assert [len(answer["predictions"]) for answer in answers[:-1]] == [1, 2, 1, 1]
    assert [len(told["top"]) for told in answers[1]["predictions"]] == [2, 2]
    assert answers[-1] == {"weights": answers[0]["weights"], "classes": 10}
    (code,) = [block for kind, block in blocks if kind == "python"]
    lines = code.strip().splitlines()
    script = "\n".join([*lines[:-1], f"print({lines[-1]})"])
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    first = answers[0]["predictions"][0]
    assert said == f"{first['class']} {first['probability']}\n"


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_schemathesis_finds_nothing(started, tmp_path, mode):
    """docs/serving.md says how many requests were tried once; here fewer, with all checks but that any bytes are an image.

    positive: requests that the schema allows, most of them with real images. negative: those that it forbids.
    """
    program = shutil.which("schemathesis") or os.environ.get("SCHEMATHESIS")
    if program is None:
        pytest.skip("schemathesis is not installed: pip install 'imgrec[schemathesis]'")
    process, url, _ = started("max_body_mb=1")
    (images := tmp_path / "images").mkdir()
    for number, form in enumerate(("JPEG", "PNG", "JPEG", "PNG", "GIF", "WEBP")):
        (images / f"{number}").write_bytes(encode(picture(number, 40 + number, 30), form))
    words = ["-n", "300", "--mode", mode, "--seed", "0", "--checks", "all", "--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run(
        [program, "run", f"{url}/openapi.json", *words, "-H", f"Authorization: Bearer {TOKEN}", "--no-color"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("schemathesis_hooks.py")), "IMAGES": str(images)},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    counts = re.findall(r'imgrec_requests_total\{path="([^"]+)",status="(\d+)"\} (\d+)', get(f"{url}/metrics"))
    assert [row for row in counts if row[1].startswith("5")] == []
    asked = {status: int(count) for path, status, count in counts if path == "/predict"}
    assert sum(asked.values()) >= 300
    if mode == "positive":
        assert asked.get("200", 0) > sum(asked.values()) / 2
    else:
        assert "200" not in asked
    process.terminate()
    assert (process.wait(LIMIT_S), process.stderr.read()) == (0, "")
