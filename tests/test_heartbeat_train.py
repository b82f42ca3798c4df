"""Whole trainings of which one process dies, hangs, fails, or does not come to a step boundary."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from error_parts import assert_error, assert_refused
from processes import finish_command, free_port, torchrun_variables, wait_until
from small_run import SMALL

pytestmark = pytest.mark.slow

HOST = socket.gethostname()
LONG = ("epochs=500", "data.train_samples=600", "trainer.limit_train_batches=1.0", "name=long", "id=1", "trainer.timeout_s=8")
Process = subprocess.Popen[str]
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path, start_command: Start) -> Start:
    """start("-m", "imgrec.train", overrides=LONG, env={}) starts Python on a run in tmp_path."""

    def begin(*words: str, overrides: tuple[str, ...], env: Mapping[str, str] = {}) -> Process:
        names = {override.partition("=")[0] for override in overrides}
        small = [override for override in SMALL if override.partition("=")[0] not in names]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        return start_command(sys.executable, *words, *small, *overrides, f"runs_dir={tmp_path}", env=environment)

    return begin


def wait_for(folder: Path, text: str) -> None:
    log = folder / "long" / "1" / "log.txt"
    wait_until(lambda: log.exists() and text in log.read_text(), lambda: log.read_text() if log.exists() else f"no {log}")


def child(process: Process, rank: int) -> int:
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"no rank {rank}")


@pytest.mark.parametrize(
    ("strategy", "rank", "number"),
    [
        ("ddp", 0, signal.SIGKILL),
        ("ddp", 1, signal.SIGKILL),
        ("ddp", 0, signal.SIGSTOP),
        ("ddp", 1, signal.SIGSTOP),
        ("fsdp", 0, signal.SIGKILL),
        ("fsdp", 1, signal.SIGKILL),
    ],
)
def test_child_is_lost(start: Start, tmp_path: Path, strategy: str, rank: int, number: signal.Signals) -> None:
    run = start("-m", "imgrec.train", overrides=(*LONG, "trainer.devices=2", f"trainer.strategy={strategy}"))
    wait_for(tmp_path, " 1/500")
    pid = child(run, rank)
    os.kill(pid, number)
    ended = finish_command(run)
    assert ended.returncode == 1
    assert "frame #" not in ended.stderr  # of C++
    last, what = ended.stderr.splitlines()[-1], "SIGKILL" if number == signal.SIGKILL else "8 s"
    assert_error(last, f"imgrec: rank {rank}", HOST, f"pid {pid}", what, "same command", "last checkpoint")
    assert " step " in last or " batch " in last or "saving" in last
    assert last.removeprefix("imgrec: ") in (tmp_path / "long" / "1" / "log.txt").read_text()


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
    ("then", "parts"),
    [
        ("while True: pass", ("nothing has moved for 8 s", "rank 1", HOST, "step 5", "epoch 1", "in patched", "rank 0")),
        ("raise ValueError('no such thing')", ("rank 1", HOST, "ValueError: no such thing", "Fix that", "same command")),
    ],
)
def test_hang_or_failure_without_a_parent(start: Start, then: str, parts: tuple[str, ...]) -> None:
    port = free_port()
    runs = [
        start(
            "-c",
            PATCHED.format(then=then),
            overrides=(*LONG, "trainer.devices=auto"),
            env=torchrun_variables(rank, 2, port=port),
        )
        for rank in range(2)
    ]
    ended = [finish_command(run) for run in runs]
    errs = [one.stderr for one in ended]
    assert [one.returncode for one in ended] == [1, 1], errs
    (line,) = [line for line in errs[0].splitlines() if line.startswith("imgrec: ")]
    assert_error(line.removeprefix("imgrec: "), *parts)


def test_stop_during_a_long_read(start: Start, tmp_path: Path) -> None:
    script = """
import sys, time
from imgrec.distributed import signals
signals.install_handlers()
from imgrec.data.image_data import ImageData
from imgrec.cli import main

def read(*given, **more):
    print("reads", flush=True)
    while True:
        time.sleep(1000)

ImageData.splits = property(read)
sys.exit(main(["train", *sys.argv[1:]]))
"""
    run = start("-c", script, overrides=LONG)
    assert run.stdout is not None
    assert run.stdout.readline() == "reads\n"
    run.send_signal(signal.SIGTERM)
    ended = finish_command(run)
    assert ended.returncode == 75
    assert_refused(ended.stderr, "stopped by SIGTERM", "15 s", "nothing was saved", "same command")
    assert ended.stderr.removeprefix("imgrec: ").strip() in (tmp_path / "long" / "1" / "log.txt").read_text()
