"""A run on several devices of one host: this process starts one process a device, passes signals on to them and waits for them.

It trains nothing itself. The children read the config of the run from a file, so it does not matter how the run was started: as a command, from
Python, or as a job of a sweep. They get torchrun's variables, and report how they ended in files, so that a run ends with one line and one exit code.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from imgrec import errors
from imgrec.cli import NO_WRITING
from imgrec.config.schema import RunConfig, run_config
from imgrec.distributed import signals, watchdog
from imgrec.distributed.diagnosis import AGAIN
from imgrec.distributed.signals import end_with_parent
from imgrec.distributed.world import RUN_DIR_VARIABLE
from imgrec.errors import FAILED, REFUSED, Died, ImgrecError, Stopped
from imgrec.files import atomic_write
from imgrec.training.run_dir import RunDir

POLL_S = 0.05
ALIKE_S = 0.5  # after the first refusal: the others may be refused alike, else they wait for the one that was
GRACE_S = 8.0  # after a death: the others find out by themselves, and say what it was doing
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


def launch(run: RunConfig, folder: RunDir, count: int, *, quiet: bool, command: Sequence[str]) -> dict[str, Any]:
    """Train `run` in its folder, which was started, with `count` processes; the content of its result.json.

    Raises what the children raised: an ImgrecError, Stopped, Died where one was killed or failed; KeyboardInterrupt at the second Ctrl-C.
    `command` is for the record.
    """
    assert folder.lock is not None
    with tempfile.TemporaryDirectory(prefix="imgrec_") as place:
        config = Path(place, "config.json")
        lock = folder.lock.fileno()  # open in the children too: while one of them lives, the folder is taken
        config.write_text(json.dumps({"run": run.to_dict(), "quiet": quiet, "command": list(command), "lock": lock}))
        children: list[RankProcess] = []
        try:
            with _passing_on(children):
                _start(children, config, count, {RUN_DIR_VARIABLE: str(folder.path)}, lock)
                _wait(children, run.trainer["timeout_s"])
        finally:
            for child in children:
                child.process.kill()
            for child in children:
                child.process.wait()
        try:
            _raise_what_they_said(children)
        except (Died, Stopped) as ended:
            with (folder.path / "log.txt").open("a") as log:
                log.write(f"{ended}\n")
            raise
    return folder.result()


def _start(children: list[RankProcess], config: Path, count: int, environment: dict[str, str], lock: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "OMP_NUM_THREADS": max(1, len(os.sched_getaffinity(0)) // count),
        "GLOO_SOCKET_IFNAME": "lo",  # the host's own name may lead nowhere
        **os.environ,
        **environment,
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
            report = config.with_name(f"rank_{rank}.json")
            words = [sys.executable, "-m", "imgrec.distributed.launcher", str(config), str(report), str(os.getpid())]
            variables = {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            children.append(RankProcess(rank, subprocess.Popen(words, env=variables, pass_fds=[lock]), report))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _passing_on(children: Sequence[RankProcess]) -> Iterator[None]:
    """Signals for this process go on to the children; the second Ctrl-C raises KeyboardInterrupt. Off the main thread Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if number == signal.SIGINT and interrupted:
            raise KeyboardInterrupt
        interrupted = interrupted or number == signal.SIGINT
        for child in children:
            child.process.send_signal(CTRL_C if number == signal.SIGINT else number)

    before = [(number, signal.signal(number, pass_on)) for number in signals.SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _wait(children: Sequence[RankProcess], timeout_s: float) -> None:
    """Until all have ended, or are not worth waiting for: one was refused or has died, and the others had their time."""
    asked = signals.stop_reason()
    if asked is not None and asked in signal.Signals.__members__:  # it came before there were children to pass it on to
        os.kill(os.getpid(), signal.Signals[asked])
    patience = {REFUSED: ALIKE_S, 0: GRACE_S + timeout_s, signals.STOPPED: GRACE_S + timeout_s}
    end = float("inf")
    while any(child.code is None for child in children) and time.monotonic() < end:
        time.sleep(POLL_S)
        for child in children:
            if child.code is None and (code := child.process.poll()) is not None:
                child.code = code
                end = min(end, time.monotonic() + patience.get(code, GRACE_S))


def _raise_what_they_said(children: Sequence[RankProcess]) -> None:
    if all(child.code == 0 for child in children):
        return
    if refused := [child for child in children if child.code == REFUSED and child.said()]:
        raise _error(refused[0])
    killed = [child for child in children if child.code is not None and child.code < 0]
    failed = [child for child in children if child.code == FAILED and "traceback" in child.said()]
    told = [child for child in children if child.said().get("error") == "Died"]
    if told and not failed:  # the heartbeat's line: it knows what a rank was doing, and here it is known how that rank ended
        text = told[0].said()["text"]
        for child in killed:
            text = text.replace(f"{child} died", f"{child} was killed by {signal.Signals(-(child.code or 0)).name}")
        raise Died(text)
    if killed:
        ends = (f"{child} was killed by {signal.Signals(-child.code).name}" for child in killed if child.code)
        raise Died(f"{'; '.join(ends)}. {AGAIN}")
    if failed:
        first = min(failed, key=lambda child: child.report.stat().st_mtime_ns)  # the others failed because it did
        sys.stderr.write(first.said()["traceback"])
        raise Died(f"{first} failed: {first.said()['text']}. {AGAIN}")
    if stopped := [child for child in children if child.code == signals.STOPPED]:
        raise Stopped(stopped[0].said().get("text", "stopped. Start the same command again to go on."))
    ended = "; ".join(
        f"{child} {'did not end' if child.code is None else f'ended with exit code {child.code}'}" for child in children
    )
    raise Died(f"{ended}. {AGAIN}")


def _error(child: RankProcess) -> Exception:
    """What a child raised for its user."""
    said = child.said()
    if said["error"] == "OSError":
        return OSError(said["errno"], said["strerror"], said["filename"])
    kind = getattr(errors, said["error"], ImgrecError)
    return kind(said["text"] if child.rank == 0 else f"{said['text'].rstrip('.')} (rank {child.rank}).")


def main(config: str, report: str, parent: str) -> None:
    """Train as one of the processes of a run, and write into `report` how that ended where it did not end well."""
    end_with_parent()  # nobody would pass signals on, or end what hangs
    if os.getppid() != int(parent):
        os._exit(FAILED)
    signals.install_handlers()
    signal.signal(CTRL_C, lambda number, frame: signals.request_stop(signal.SIGINT.name))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {CTRL_C, *PASSED_ON})
    given = json.loads(Path(config).read_text())
    os.register_at_fork(after_in_child=lambda: os.close(given["lock"]))  # loader workers may outlive a killed parent for a while
    code, said = FAILED, dict[str, Any]()
    watchdog.speak = lambda line, code: atomic_write(
        Path(report), json.dumps({"text": line} | ({"error": "Died"} if code == FAILED else {}))
    )
    try:
        from imgrec.train import fit

        fit(run_config(given["run"]), quiet=given["quiet"], command=given["command"])
        code = 0
    except Stopped as stopped:
        code, said = signals.STOPPED, {"text": str(stopped)}
    except ImgrecError as error:
        code, said = REFUSED, {"error": type(error).__name__, "text": str(error)}
    except BaseException as error:
        said = {"text": traceback.format_exception_only(error)[-1].strip(), "traceback": traceback.format_exc()}
        if isinstance(error, OSError) and error.errno in NO_WRITING:
            code = REFUSED
            said |= {"error": "OSError", "errno": error.errno, "strerror": error.strerror, "filename": error.filename}
    if code == 0:
        return
    if os.environ.get("IMGREC_DEBUG") == "1":
        traceback.print_exc()
    atomic_write(Path(report), json.dumps(said))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without the destructors of a process group whose other members are gone: they may wait


if __name__ == "__main__":
    main(*sys.argv[1:])
