"""A run on several devices of one host: this process starts one process a device, passes signals on to them and waits for them.

It is told the command to start, and trains nothing itself. The ranks read their task from a file, so it does not matter how the run was started: as a
command, from Python, or as a job of a sweep. They get torchrun's variables, and report how they ended in files, so that a run ends with one line and one
exit code.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from imgrec import errors
from imgrec.config.schema import Node
from imgrec.distributed import signals, watchdog
from imgrec.distributed.diagnosis import AGAIN
from imgrec.distributed.signals import end_with_parent
from imgrec.distributed.world import RUN_DIR_VARIABLE
from imgrec.errors import UNWRITABLE, Died, ExitCode, ImgrecError, Stopped
from imgrec.files import atomic_write

RANK_POLL_S = 0.05
ALIKE_S = 0.5  # after the first refusal: the others may be refused alike, else they wait for the one that was
DEATH_GRACE_S = 8.0  # after a death: the others find out by themselves, and say what it was doing
# Ctrl-C on a terminal reaches the whole process group. So it is blocked in the children, and their parent passes it on once, as this signal.
CTRL_C = signal.SIGRTMIN
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class RankProcess:
    """A process of the run, and the file in which it says how it ended."""

    rank: int
    process: subprocess.Popen[bytes]
    report: Path
    code: int | None = None  # once it has ended by itself; None where it was ended from here

    def said(self) -> dict[str, Any]:
        """Its report; empty where it did not come to that."""
        found: dict[str, Any] = json.loads(self.report.read_text()) if self.report.exists() else {}
        return found

    def __str__(self) -> str:
        return f"rank {self.rank} on {socket.gethostname()} (pid {self.process.pid})"


def launch(command: Sequence[str], task: Node, count: int, *, run_dir: Path, lock: int, timeout_s: float) -> None:
    """Run `command` as `count` ranks and wait for them; each calls `run_rank` with the arguments that are added, and gets `task`.

    lock: the file descriptor of the run directory's lock, open in the ranks too: while one of them lives, the directory is taken.
    Raises what the ranks raised: an ImgrecError, Stopped, Died where one was killed or failed; KeyboardInterrupt at the second Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="imgrec_") as folder:
        task_file = Path(folder, "task.json")
        task_file.write_text(json.dumps({"task": task, "lock": lock}))
        ranks: list[RankProcess] = []
        try:
            with _signals_passed_on(ranks):
                _start([*command, str(task_file)], ranks, count, run_dir, lock)
                _wait(ranks, timeout_s)
        finally:
            for rank in ranks:
                rank.process.kill()
            for rank in ranks:
                rank.process.wait()
        try:
            _raise_reported(ranks)
        except (Died, Stopped) as ended:
            with (run_dir / "log.txt").open("a") as log:
                log.write(f"{ended}\n")
            raise


def _start(command: Sequence[str], ranks: list[RankProcess], count: int, run_dir: Path, lock: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "OMP_NUM_THREADS": max(1, len(os.sched_getaffinity(0)) // count),
        "GLOO_SOCKET_IFNAME": "lo",  # the host's own name may lead nowhere
        **os.environ,
        RUN_DIR_VARIABLE: str(run_dir),
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "GROUP_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "imgrec",
    }
    # Until a child listens, signals for it wait: they would end it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, CTRL_C, *PASSED_ON})
    try:
        for rank in range(count):
            report = Path(command[-1]).with_name(f"rank_{rank}.json")
            variables = {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            process = subprocess.Popen([*command, str(report), str(os.getpid())], env=variables, pass_fds=[lock])
            ranks.append(RankProcess(rank, process, report))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _signals_passed_on(ranks: Sequence[RankProcess]) -> Iterator[None]:
    """Signals for this process go on to the ranks; the second Ctrl-C raises KeyboardInterrupt. Off the main thread Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if number == signal.SIGINT and interrupted:
            raise KeyboardInterrupt
        interrupted = interrupted or number == signal.SIGINT
        for rank in ranks:
            rank.process.send_signal(CTRL_C if number == signal.SIGINT else number)

    before = [(number, signal.signal(number, pass_on)) for number in signals.SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _wait(ranks: Sequence[RankProcess], timeout_s: float) -> None:
    """Until all have ended, or are not worth waiting for: one was refused or has died, and the others had their time."""
    asked = signals.stop_reason()
    if asked is not None and asked in signal.Signals.__members__:  # it came before there were ranks to pass it on to
        os.kill(os.getpid(), signal.Signals[asked])
    patience = {ExitCode.REFUSED: ALIKE_S, 0: DEATH_GRACE_S + timeout_s, ExitCode.STOPPED: DEATH_GRACE_S + timeout_s}
    end = float("inf")
    while any(rank.code is None for rank in ranks) and time.monotonic() < end:
        time.sleep(RANK_POLL_S)
        for rank in ranks:
            if rank.code is None and (code := rank.process.poll()) is not None:
                rank.code = code
                end = min(end, time.monotonic() + patience.get(code, DEATH_GRACE_S))


def _raise_reported(ranks: Sequence[RankProcess]) -> None:
    if all(rank.code == 0 for rank in ranks):
        return
    if refused := [rank for rank in ranks if rank.code == ExitCode.REFUSED and rank.said()]:
        raise _error(refused[0])
    killed = [rank for rank in ranks if rank.code is not None and rank.code < 0]
    failed = [rank for rank in ranks if rank.code == ExitCode.FAILED and "traceback" in rank.said()]
    told = [rank for rank in ranks if rank.said().get("error") == "Died"]
    if told and not failed:  # the heartbeat's line: it knows what a rank was doing, and here it is known how that rank ended
        text = told[0].said()["text"]
        for rank in killed:
            text = text.replace(f"{rank} died", f"{rank} was killed by {signal.Signals(-(rank.code or 0)).name}")
        raise Died(text)
    if killed:
        ends = (f"{rank} was killed by {signal.Signals(-rank.code).name}" for rank in killed if rank.code)
        raise Died(f"{'; '.join(ends)}. {AGAIN}")
    if failed:
        first = min(failed, key=lambda rank: rank.report.stat().st_mtime_ns)  # the others failed because it did
        sys.stderr.write(first.said()["traceback"])
        raise Died(f"{first} failed: {first.said()['text']}. {AGAIN}")
    if stopped := [rank for rank in ranks if rank.code == ExitCode.STOPPED]:
        raise Stopped(stopped[0].said().get("text", "stopped. Start the same command again to resume."))
    ended = "; ".join(f"{rank} {'did not end' if rank.code is None else f'ended with exit code {rank.code}'}" for rank in ranks)
    raise Died(f"{ended}. {AGAIN}")


def _error(rank: RankProcess) -> Exception:
    """What a child raised for its user."""
    said = rank.said()
    if said["error"] == "OSError":
        return OSError(said["errno"], said["strerror"], said["filename"])
    kind = getattr(errors, said["error"], ImgrecError)
    return kind(said["text"] if rank.rank == 0 else f"{said['text'].rstrip('.')} (rank {rank.rank}).")


def run_rank(argv: Sequence[str], work: Callable[[Node], object]) -> None:
    """As one of the ranks that `launch` started: `work(task)`, and a report of how that ended, where it did not end well.

    argv: what `launch` added to the command: the file with the task, the file for the report, the parent's process number.
    """
    task_file, report_file, parent = argv
    end_with_parent()  # nobody would pass signals on, or end what hangs
    if os.getppid() != int(parent):
        os._exit(ExitCode.FAILED)
    signals.install_handlers()
    signal.signal(CTRL_C, lambda number, frame: signals.request_stop(signal.SIGINT.name))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {CTRL_C, *PASSED_ON})
    given = json.loads(Path(task_file).read_text())
    os.register_at_fork(after_in_child=lambda: os.close(given["lock"]))  # loader workers may outlive a killed parent for a while
    code, report = ExitCode.FAILED, dict[str, Any]()
    watchdog.speak = lambda line, code: atomic_write(
        Path(report_file), json.dumps({"text": line} | ({"error": "Died"} if code == ExitCode.FAILED else {}))
    )
    try:
        work(given["task"])
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
    os._exit(code)  # without the destructors of a process group whose other members are gone: they may wait
