"""Whole trainings of which one process dies, hangs, fails, or does not come to a step boundary."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_run import SMALL

pytestmark = pytest.mark.slow

HOST = socket.gethostname()
AGAIN = "Start the same command again to go on from the last checkpoint."
LONG = ("epochs=500", "data.train_samples=600", "trainer.limit_train_batches=1.0", "name=long", "id=1", "trainer.timeout_s=8")
Process = subprocess.Popen[str]
STARTED: list[Process] = []


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    while STARTED:
        with STARTED.pop() as run:
            run.kill()


def start(folder: Path, words: list[str], env: dict[str, str], *more: str) -> Process:
    given = [*[word for word in SMALL if word.partition("=")[0] not in {one.partition("=")[0] for one in more}], *more]
    run = subprocess.Popen(
        [sys.executable, *words, *given, f"runs_dir={folder}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(run)
    return run


def wait_for(folder: Path, word: str) -> None:
    log, until = folder / "long" / "1" / "log.txt", time.monotonic() + 120
    while not (log.exists() and word in log.read_text()):
        assert time.monotonic() < until, log.read_text() if log.exists() else f"no {log}"
        time.sleep(0.1)


def child(process: Process, rank: int) -> int:
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"no rank {rank}")


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (0, signal.SIGSTOP), (1, signal.SIGSTOP)])
def test_child_is_lost(tmp_path: Path, rank: int, number: signal.Signals) -> None:
    run = start(tmp_path, ["-m", "imgrec.train"], {}, *LONG, "trainer.devices=2")
    wait_for(tmp_path, " 1/500")
    pid = child(run, rank)
    os.kill(pid, number)
    began = time.monotonic()
    _, err = run.communicate(timeout=90)
    assert run.returncode == 1
    what = "was killed by SIGKILL while " if number == signal.SIGKILL else "has given no sign for 8 s; it was "
    last = err.splitlines()[-1]
    assert last.startswith(f"imgrec: rank {rank} on {HOST} (pid {pid}) {what}"), err
    assert last.endswith(AGAIN)
    assert " step " in last or " batch " in last or "saving" in last
    assert last.removeprefix("imgrec: ") in (tmp_path / "long" / "1" / "log.txt").read_text()
    assert time.monotonic() - began < (20 if number == signal.SIGKILL else 8 + 30)


# Rank 1 does something in its fifth step.
PATCHED = """
import os, sys, torch
from imgrec.cli import main

steps, step = [], torch.optim.SGD.step

def patched(*given, **more):
    steps.append(1)
    while len(steps) == 5 and os.environ["RANK"] == "1":
        {then}
    return step(*given, **more)

torch.optim.SGD.step = patched
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (
            "while True: pass",
            ("imgrec: nothing has moved for 8 s: rank 1 on", "is training step 5 (epoch 1) (at ", " in patched); rank 0 is"),
        ),
        ("raise ValueError('no such thing')", ("imgrec: rank 1 on", "failed: ValueError: no such thing. Fix that")),
    ],
)
def test_hang_or_failure_without_a_parent(tmp_path: Path, then: str, said: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    runs = [
        start(
            tmp_path,
            ["-c", PATCHED.format(then=then)],
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            *LONG,
            "trainer.devices=auto",
        )
        for rank in range(2)
    ]
    errs = [run.communicate(timeout=150)[1] for run in runs]
    assert [run.returncode for run in runs] == [1, 1], errs
    for part in said:
        assert part in errs[0], errs
    assert errs[0].count("imgrec: ") == 1


def test_stop_during_a_long_read(tmp_path: Path) -> None:
    script = """
import sys, time
from imgrec.distributed import signals
signals.install_handlers()
from imgrec.data.datamodule import ImageData
from imgrec.cli import main

def read(*given, **more):
    print("reads", flush=True)
    while True:
        time.sleep(1000)

ImageData.prepare_run = read
sys.exit(main(["train", *sys.argv[1:]]))
"""
    run = start(tmp_path, ["-c", script], {}, *LONG)
    assert run.stdout is not None
    assert run.stdout.readline() == "reads\n"
    began = time.monotonic()
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=60)
    line = "stopped by SIGTERM; no step boundary came within 15 s: nothing was saved. Start the same command again to go on."
    assert (run.returncode, err) == (75, f"imgrec: {line}\n")
    assert time.monotonic() - began < 20
    assert line in (tmp_path / "long" / "1" / "log.txt").read_text()
