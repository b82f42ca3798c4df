"""The server under load, beside `imgrec predict` of the same files: python benchmarks/serve.py RUN FOLDER

RUN: a run directory; FOLDER: photographs. This process is the client, server and predict are others; all share the cores that
there are, so what the client takes is missing to the server (`client` in the output). Processor time is what is compared on a
busy machine: that of a process and of the processes that it started. --peer PYTHON: LitServe's server too, with a Python that has it.

python benchmarks/serve.py sleep: how long images wait at half load by the batches alone, for a network that sleeps instead of computing.
python benchmarks/serve.py bare RUN --rate N: two threads that do nothing but run the network, one image after the other, with the same
arrivals: what p99 this machine can give without a server. It is also part of each round of the load test.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

CLIENTS, ALONE = 64, 40
TICKS = os.sysconf("SC_CLK_TCK")
LITSERVE = """
import io, sys
import litserve, torch
from fastapi import UploadFile
from imgrec import load
from imgrec.data.decode import decode_bytes, fit_to_size

class API(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        self.predictor = load(sys.argv[1], device="cpu")
    def decode_request(self, request: UploadFile):
        steps = self.predictor.preprocessing
        return fit_to_size(decode_bytes(request.file.read(), "image", steps), steps)
    def batch(self, inputs):
        return torch.stack(inputs)
    def predict(self, images):
        return self.predictor.ranked(self.predictor.probabilities(images), 3)
    def unbatch(self, output):
        return output
    def encode_response(self, output):
        return {"top": [[name, probability] for name, probability in output.top]}

if __name__ == "__main__":
    api = API(max_batch_size=16, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2, timeout=600)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
"""


class Reply(NamedTuple):
    status: int
    seconds: float
    body: bytes


class Connection:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes, since: float | None = None) -> Reply:
        start = time.perf_counter() if since is None else since
        if self.streams is None or self.streams[0].at_eof():  # the server closes connections that are idle for 5 s
            self.streams = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        reader, writer = self.streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        if b"connection: close" in head:
            writer.close()
            self.streams = None
        return Reply(int(head.split()[1]), time.perf_counter() - start, body)


def raw_request(content: bytes) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/jpeg\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def form_request(content: bytes) -> bytes:
    part = b'--XyZ\r\nContent-Disposition: form-data; name="request"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    body = part + content + b"\r\n--XyZ--\r\n"
    head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=XyZ\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def alone(port: int, requests: list[bytes]) -> list[float]:
    connection = Connection(port)
    return [(await connection.send(requests[number % len(requests)])).seconds for number in range(ALONE)]


async def closed(port: int, requests: list[bytes], seconds: float, clients: int = CLIENTS) -> list[Reply]:
    """Each client sends its next image when it has the answer to the last."""
    replies: list[Reply] = []
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        connection, chance = Connection(port), random.Random(number)
        while time.perf_counter() < end:
            replies.append(await connection.send(chance.choice(requests)))

    await asyncio.gather(*map(client, range(clients)))
    return replies


async def lag(found: list[float]) -> None:
    """How late this process is woken, in milliseconds: what a busy machine adds to every time that is measured here."""
    while True:
        due = time.perf_counter() + 0.02
        await asyncio.sleep(0.02)
        found.append(1000 * (time.perf_counter() - due))


async def opened(
    port: int, requests: list[bytes], rate: float, seconds: float, seed: int
) -> tuple[list[Reply], int, list[float]]:
    """Images arrive at random moments, `rate` a second, whatever the server does; how many got no answer, and the client's lag."""
    late: list[float] = []
    watch = asyncio.create_task(lag(late))
    chance, idle, tasks = random.Random(seed), [], []

    async def one(request: bytes, due: float) -> Reply:
        connection = idle.pop() if idle else Connection(port)
        reply = await connection.send(request, due)
        idle.append(connection)
        return reply

    start = due = time.perf_counter()
    while due < start + seconds:
        due += chance.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(chance.choice(requests), time.perf_counter())))
    found = await asyncio.gather(*tasks, return_exceptions=True)
    watch.cancel()
    return [reply for reply in found if isinstance(reply, Reply)], sum(not isinstance(reply, Reply) for reply in found), late


def processor_seconds(pid: int) -> float:
    """Of a process, its threads and the processes below it that still run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS + sum(map(processor_seconds, map(int, children.split())))


@contextmanager
def served(words: list[str], port: int, request: bytes) -> Iterator[int]:
    """The pid of a server that has answered `request` a few times."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(600):
            try:
                if all(asyncio.run(Connection(port).send(request)).status == 200 for _ in range(3)):
                    break
            except OSError:
                assert process.poll() is None, f"{words} ended"
                time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # of LitServe's processes some are left


def offline(run: str, folder: str, scratch: str) -> dict[str, float]:
    """Images a second as predict says it, without its start; and the processor's time of an image, with it."""
    before = os.times()
    words = ["predict", run, folder, f"out={scratch}/p.csv", "overwrite=true"]
    said = subprocess.run([sys.executable, "-m", "imgrec.cli", *words], check=True, capture_output=True, text=True).stdout
    after = os.times()
    count, rate = re.search(r"([\d,]+) files \(([\d,]+) a second\)", said).groups()  # type: ignore[union-attr]
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {"images_a_second": float(rate.replace(",", "")), "processor_ms": 1000 * processor / int(count.replace(",", ""))}


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def busy_seconds() -> float:
    """Of all cores since the machine started, whatever took them."""
    user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(others)) / TICKS


def load_test(pid: int, port: int, requests: list[bytes], seconds: float, half_seconds: float, seed: int) -> dict[str, Any]:
    single = asyncio.run(alone(port, requests))
    asyncio.run(closed(port, requests, 2.0))
    start, server, client = time.perf_counter(), processor_seconds(pid), time.process_time()
    replies = asyncio.run(closed(port, requests, seconds))
    took = time.perf_counter() - start
    found: dict[str, Any] = {
        "images_a_second": len(replies) / took,
        "processor_ms": 1000 * (processor_seconds(pid) - server) / len(replies),
        "client_processor_ms": 1000 * (time.process_time() - client) / len(replies),
        "statuses": dict(Counter(reply.status for reply in replies)),
        "alone_median_ms": 1000 * statistics.median(single),
    }
    start, own, busy = time.perf_counter(), processor_seconds(pid) + time.process_time(), busy_seconds()
    half, lost, late = asyncio.run(opened(port, requests, 0.5 * found["images_a_second"], half_seconds, seed))
    took, own, busy = time.perf_counter() - start, processor_seconds(pid) + time.process_time() - own, busy_seconds() - busy
    times = [reply.seconds for reply in half]
    found |= {
        "half_load_p50_ms": 1000 * statistics.median(times),
        "half_load_p99_ms": 1000 * percentile(times, 0.99),
        "half_load_requests": len(half),
        "half_load_lost": lost,
        "half_load_cores": own / took,
        "half_load_cores_of_others": (busy - own) / took,
        "client_lag_p99_ms": percentile(late, 0.99),
        "p99_to_alone": percentile(times, 0.99) / statistics.median(single),
    }
    return found


def overload(port: int, requests: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    replies, lost, late = asyncio.run(opened(port, requests, rate, seconds, 0))
    full = [1000 * reply.seconds for reply in replies if reply.status == 429] or [0.0]
    return {
        "requests": len(replies) + lost,
        "lost": lost,
        "statuses": dict(Counter(reply.status for reply in replies)),
        "429_p50_ms": statistics.median(full),
        "429_p99_ms": percentile(full, 0.99),
        "429_max_ms": max(full),
        "client_lag_p50_ms": statistics.median(late),
        "client_lag_p99_ms": percentile(late, 0.99),
    }


async def sleeping(seconds: float, threads: int = 2, image_s: float = 0.045) -> dict[str, float]:
    """At random moments, half as many images as the threads answer; without HTTP, decoding and the noise of other programs."""
    from imgrec.serving.batcher import Batcher

    def work(items: list[int]) -> list[int]:
        time.sleep(image_s * len(items))
        return items

    batcher = Batcher(work, batch_size=16, max_wait_s=0.002, max_admitted=1000, threads=threads, parts=2 * threads)
    batcher.start()
    chance, times, tasks = random.Random(0), [], []

    async def one() -> None:
        start = time.perf_counter()
        with batcher.admit() as admission:
            await admission.answer([0])
        times.append(time.perf_counter() - start)

    start = due = time.perf_counter()
    while due < start + seconds:
        due += chance.expovariate(threads / image_s / 2)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    await batcher.close()
    return {"p50_to_alone": statistics.median(times) / image_s, "p99_to_alone": percentile(times, 0.99) / image_s}


def bare(run: str, rate: float, seconds: float, seed: int) -> dict[str, float]:
    """Two threads and a queue around the network, without HTTP, files, batches and another process."""
    import torch

    from imgrec import load
    from imgrec.serving.recognizer import CheckpointRecognizer

    predictor = load(run, device="cpu")
    recognizer = CheckpointRecognizer(predictor, None, batch_size=1, max_pixels=10**7)
    steps = predictor.preprocessing
    image = torch.zeros((steps["channels"], steps["image_size"], steps["image_size"]), dtype=torch.uint8)
    times: list[float] = []
    waiting: SimpleQueue[float | None] = SimpleQueue()

    def one(since: float) -> None:
        recognizer.answer([image], 3)
        times.append(time.perf_counter() - since)

    def work() -> None:
        torch.set_num_threads(1)
        while (since := waiting.get()) is not None:
            one(since)

    torch.set_num_threads(1)
    for _ in range(ALONE + 3):
        one(time.perf_counter())
    single = statistics.median(times[3:])
    times.clear()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    chance, start = random.Random(seed), time.perf_counter()
    due = start
    while due < start + seconds:
        due += chance.expovariate(rate)
        time.sleep(max(0.0, due - time.perf_counter()))
        waiting.put(time.perf_counter())
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join()
    return {
        "alone_median_ms": 1000 * single,
        "p50_ms": 1000 * statistics.median(times),
        "p99_ms": 1000 * percentile(times, 0.99),
        "p99_to_alone": percentile(times, 0.99) / single,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("run")
    arguments.add_argument("folder", nargs="?")
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--half-seconds", type=float, default=40.0, help="at half load, as p99 needs many requests")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seed", type=int, default=0, help="of the first round's moments at which images come")
    arguments.add_argument("--rate", type=float, default=24.0, help="images a second, of `bare`")
    arguments.add_argument("--port", type=int, default=8765)
    arguments.add_argument("--peer", help="a Python that has LitServe")
    arguments.add_argument("--words", nargs="*", default=[], help="overrides of imgrec serve")
    given = arguments.parse_args()
    if given.run == "sleep":
        print(json.dumps(asyncio.run(sleeping(given.half_seconds))))
        return
    if given.run == "bare":
        print(json.dumps(bare(given.folder, given.rate, given.half_seconds, given.seed)))
        return
    contents = [file.read_bytes() for file in sorted(Path(given.folder).rglob("*.jpg"))]
    raw, forms = list(map(raw_request, contents)), list(map(form_request, contents))
    port = given.port
    ours = [sys.executable, "-m", "imgrec.serve", given.run, f"port={port}", *given.words]
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(given.seed, given.seed + given.rounds):
            print("offline ", json.dumps(offline(given.run, given.folder, scratch)), flush=True)
            with served(ours, port, raw[0]) as pid:
                found = load_test(pid, port, raw, given.seconds, given.half_seconds, seed)
                print("serve   ", json.dumps(found), flush=True)
                rate = 10 * found["images_a_second"]
                print("overload", json.dumps(overload(port, raw, rate, given.seconds / 2)), flush=True)
            limits = [f"--rate={rate / 20}", f"--half-seconds={given.half_seconds}", f"--seed={seed}"]
            words = [sys.executable, __file__, "bare", given.run, *limits]
            print("bare    ", subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip(), flush=True)
            if given.peer:
                (script := Path(scratch, "peer.py")).write_text(LITSERVE)
                with served([given.peer, str(script), given.run, str(port + 1)], port + 1, forms[0]) as pid:
                    print(
                        "litserve",
                        json.dumps(load_test(pid, port + 1, forms, given.seconds, given.half_seconds, seed)),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
