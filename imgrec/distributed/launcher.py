"""A run on several devices of one host: start one process per device, forward signals to them and wait for them.

The ranks read their task from a file, so a run may be started by a command, from Python or as a job of a sweep. They
get torchrun's variables, and report in files how they ended, so that a run ends with one line and one exit code.
"""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from imgrec import errors
from imgrec.config.schema import Node
from imgrec.distributed import signals, watchdog
from imgrec.distributed.diagnosis import AGAIN
from imgrec.distributed.garbage import collect_seldom
from imgrec.distributed.ports import LOCAL, SOCKET_VARIABLE
from imgrec.distributed.world import RUN_DIR_VARIABLE
from imgrec.errors import UNWRITABLE, Died, ExitCode, ImgrecError, Stopped
from imgrec.files import atomic_write, naming
from imgrec.locks import lock_file
from imgrec.terminal import lenient_streams

RANK_POLL_S = 0.05
REFUSED_GRACE_S = 0.5  # after a rank was refused: the others may be refused too, or wait for it
LEFT_S = 60.0  # after which a folder without a lock was left by a killed process: one that starts has locked it by then
DEATH_GRACE_S = 8.0  # after a rank died: the heartbeat of the others ends them, with a line that says what it was doing
# Ctrl-C on a terminal reaches the whole process group. It is blocked in the ranks, and the parent forwards it as this.
CTRL_C = signal.SIGRTMIN
FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@dataclass
class RankProcess:
    """A rank of the run, and the file in which it reports how it ended."""

    rank: int
    process: subprocess.Popen[bytes]
    report_file: Path
    code: int | None = None  # None while it runs, and where it was killed from here

    def report(self) -> dict[str, Any]:
        """The content of its report file; empty where it wrote none."""
        report: dict[str, Any] = json.loads(self.report_file.read_text()) if self.report_file.exists() else {}
        return report

    def __str__(self) -> str:
        return f"rank {self.rank} on {socket.gethostname()} (pid {self.process.pid})"


def launch(command: Sequence[str], task: Node, count: int, *, run_dir: Path, lock: int, timeout_s: float) -> None:
    """Run `command` as `count` ranks and wait for them; each calls `run_rank` with the added arguments and gets `task`.

    lock: the file descriptor of the run directory's lock, open in the ranks too, so that it is held while one of them
    lives. Raises what the ranks raised: an ImgrecError, Stopped, or Died where one was killed or failed; and
    KeyboardInterrupt at the second Ctrl-C.
    """
    with launch_folder() as folder:
        task_file = folder / "task.json"
        with naming(task_file):
            task_file.write_text(json.dumps({"task": task, "lock": lock}))
        ranks: list[RankProcess] = []
        try:
            with signals.handlers_installed(_forward_to(ranks)):
                _start([*command, str(task_file)], ranks, count, run_dir, lock)
                _wait(ranks, timeout_s)
        finally:
            for rank in ranks:
                rank.process.kill()
            for rank in ranks:
                rank.process.wait()
        try:
            _raise_reported(ranks)
        except Died as error:
            with (run_dir / "log.txt").open("a", encoding="utf-8") as log:
                log.write(f"{error}\n")
            raise


@contextmanager
def launch_folder() -> Iterator[Path]:
    """A temporary folder, locked in the block; removes those that killed processes have left."""
    prefix = f"imgrec_{socket.gethostname()}_"  # a lock may not be seen on other machines
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - LEFT_S:
                with _locked(left) as is_locked:
                    if is_locked:
                        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, _locked(Path(folder)):
        yield Path(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether it is locked in the block: not on a file system without locks. BlockingIOError where another process has locked it.

    A lock ends with its process, however that ends.
    """
    number = os.open(folder, os.O_RDONLY)
    try:
        yield lock_file(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(number)


def _start(command: Sequence[str], ranks: list[RankProcess], count: int, run_dir: Path, lock: int) -> None:
    # For rank 0, which listens with it. Without SO_REUSEADDR nobody else can have its port until then.
    with socket.socket() as bound:
        bound.bind((LOCAL, 0))
        _start_ranks(command, ranks, count, run_dir, lock, bound)


def _start_ranks(
    command: Sequence[str], ranks: list[RankProcess], count: int, run_dir: Path, lock: int, bound: socket.socket
) -> None:
    shared = {
        "OMP_NUM_THREADS": max(1, len(os.sched_getaffinity(0)) // count),
        **os.environ,
        RUN_DIR_VARIABLE: str(run_dir),
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "GROUP_RANK": 0,
        "MASTER_ADDR": LOCAL,
        "MASTER_PORT": bound.getsockname()[1],
        "TORCHELASTIC_RUN_ID": "imgrec",
    }
    # Signals are blocked until a rank has its handlers: they would kill it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, CTRL_C, *FORWARDED})
    try:
        for rank in range(count):
            report = Path(command[-1]).with_name(f"rank_{rank}.json")
            own = {"RANK": rank, "LOCAL_RANK": rank, SOCKET_VARIABLE: bound.fileno()}
            variables = {key: str(value) for key, value in (shared | own).items()}
            files = [lock] if rank else [lock, bound.fileno()]  # rank 0 listens
            process = subprocess.Popen([*command, str(report), str(os.getpid())], env=variables, pass_fds=files)
            ranks.append(RankProcess(rank, process, report))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forward_to(ranks: Sequence[RankProcess]) -> Callable[[int, FrameType | None], None]:
    """A handler that forwards signals of this process to the ranks; the second Ctrl-C raises KeyboardInterrupt."""
    interrupted = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if number == signal.SIGINT and interrupted:
            raise KeyboardInterrupt
        interrupted = interrupted or number == signal.SIGINT
        for rank in ranks:
            rank.process.send_signal(CTRL_C if number == signal.SIGINT else number)

    return forward


def _wait(ranks: Sequence[RankProcess], timeout_s: float) -> None:
    """Wait until all ranks have ended, or one has and the grace period for the others is over."""
    reason = signals.stop_reason()
    if reason is not None and reason in signal.Signals.__members__:  # received before there were ranks to forward it to
        os.kill(os.getpid(), signal.Signals[reason])
    long_s = DEATH_GRACE_S + timeout_s
    grace: dict[int, float] = {ExitCode.REFUSED: REFUSED_GRACE_S, ExitCode.OK: long_s, ExitCode.STOPPED: long_s}
    end = float("inf")
    while any(rank.code is None for rank in ranks) and time.monotonic() < end:
        time.sleep(RANK_POLL_S)
        for rank in ranks:
            if rank.code is None and (code := rank.process.poll()) is not None:
                rank.code = code
                end = min(end, time.monotonic() + grace.get(code, DEATH_GRACE_S))
                if code == ExitCode.STOPPED:  # before all had connected it could not tell the others
                    for other in ranks:
                        other.process.send_signal(signal.SIGTERM)


def _raise_reported(ranks: Sequence[RankProcess]) -> None:
    """Raise the one error of the run, from the exit codes and the reports of its ranks."""
    if all(rank.code == 0 for rank in ranks):
        return
    if refused := [rank for rank in ranks if rank.code == ExitCode.REFUSED and rank.report()]:
        rank, report = refused[0], refused[0].report()
        if report["error"] == "OSError":
            raise OSError(report["errno"], report["strerror"], report["filename"])
        kind = getattr(errors, report["error"], ImgrecError)
        raise kind(report["text"] if rank.rank == 0 else f"{report['text'].rstrip('.')} (rank {rank.rank}).")
    killed = [(rank, signals.signal_name(-rank.code)) for rank in ranks if rank.code is not None and rank.code < 0]
    failed = [rank for rank in ranks if rank.code == ExitCode.FAILED and "traceback" in rank.report()]
    diagnosed = [rank for rank in ranks if rank.report().get("error") == "Died"]
    if diagnosed and not failed:  # the heartbeat's line says what a rank was doing; only its parent knows the signal
        text = diagnosed[0].report()["text"]
        for rank, name in killed:
            text = text.replace(f"{rank} died", f"{rank} was killed by {name}")
        raise Died(text)
    if killed:
        raise Died(f"{'; '.join(f'{rank} was killed by {name}' for rank, name in killed)}. {AGAIN}")
    if failed:
        first = min(failed, key=lambda rank: rank.report_file.stat().st_mtime_ns)  # the others failed because it did
        sys.stderr.write(first.report()["traceback"])
        raise Died(f"{first} failed: {first.report()['text']}. {AGAIN}")
    if stopped := [rank for rank in ranks if rank.code == ExitCode.STOPPED]:
        raise Stopped(stopped[0].report().get("text", "stopped. Start the same command again to resume."))
    ended = "; ".join(f"{rank} {'did not end' if rank.code is None else f'ended with exit code {rank.code}'}" for rank in ranks)
    raise Died(f"{ended}. {AGAIN}")


@lenient_streams()
def run_rank(argv: Sequence[str], work: Callable[[Node], object]) -> None:
    """In a rank that `launch` started: call `work(task)`, and write a report if that fails or is stopped.

    argv: the arguments that `launch` added: the file with the task, the file for the report, the parent's process id.
    """
    collect_seldom()
    task_file, report_file, parent = argv
    # Its loader workers' sockets are where the parent removes them, however this process ends.
    multiprocessing.current_process()._config["tempdir"] = tempfile.mkdtemp(dir=Path(task_file).parent)  # type: ignore[attr-defined]
    signals.end_with_parent()  # which would forward signals, and kill a rank that hangs
    if os.getppid() != int(parent):
        os._exit(ExitCode.FAILED)
    signals.install_handlers()
    signal.signal(CTRL_C, lambda number, frame: signals.request_stop(signal.SIGINT.name))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {CTRL_C, *FORWARDED})
    content = json.loads(Path(task_file).read_text())
    os.register_at_fork(after_in_child=lambda: os.close(content["lock"]))  # loader workers may outlive a killed rank
    code, report = ExitCode.FAILED, dict[str, Any]()
    watchdog.report_end = lambda line, code: atomic_write(
        Path(report_file), json.dumps({"text": line} | ({"error": "Died"} if code == ExitCode.FAILED else {}))
    )
    try:
        work(content["task"])
        return
    except Stopped as stopped:
        code, report = ExitCode.STOPPED, {"text": str(stopped)}
    except ImgrecError as error:
        code, report = ExitCode.REFUSED, {"error": type(error).__name__, "text": str(error)}
    except BaseException as error:
        report = {"text": traceback.format_exception_only(error)[-1].strip(), "traceback": traceback.format_exc()}
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            code = ExitCode.REFUSED
            report |= {"error": "OSError", "errno": error.errno, "strerror": error.strerror, "filename": error.filename}
    if os.environ.get("IMGREC_DEBUG") == "1":
        traceback.print_exc()
    atomic_write(Path(report_file), json.dumps(report))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without the destructors of a process group whose other ranks have ended: they may hang
