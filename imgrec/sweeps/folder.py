"""The folder of a sweep: which one a command means, its jobs with their results, and their ranking in sweep.csv and sweep.json."""

import csv
import errno
import fcntl
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from operator import gt, lt
from pathlib import Path
from typing import IO, Any

from imgrec.config.overrides import SEARCH
from imgrec.config.plain_data import read_mapping
from imgrec.config.schema import monitor_mode, parse_settings
from imgrec.errors import ConfigError, DataError, Died, ImgrecError, Stopped, first_line
from imgrec.files import atomic_write, numbered_paths
from imgrec.locks import NO_LOCKS, lock_file
from imgrec.sweeps.grid import PRUNE, SweepPlan
from imgrec.training.config_difference import RESUMABLE_KEYS
from imgrec.training.run_dir import RunDir

FROM_DEFAULTS = "tune"  # beside the arguments of a search whose first trial has the defaults
HAVE_RESULT = ("finished", "pruned")
DONE = (*HAVE_RESULT, "failed")


@dataclass
class Job:
    """A run of a sweep: its overrides, and its outcome."""

    number: int
    overrides: list[str]
    folder: str
    thresholds: list[float] = field(default_factory=list)  # of `monitor` after each epoch: where it is worse, the job is pruned
    status: str = "waiting"  # waiting, started, stopped, finished, pruned, failed
    value: float | None = None  # the best `monitor`
    test_accuracy: float | None = None
    test_interval: list[float] | None = None  # at 95%
    seconds: float | None = None  # of training
    error: str = ""
    refused: bool = False  # is the error one that the user can fix?

    def settings(self) -> dict[str, str]:
        """Key to value of its overrides."""
        return {key.lstrip("+"): value for key, _, value in (text.partition("=") for text in self.overrides)}

    def fail(self, error: BaseException) -> None:
        """Note an error, in one line with its type where it is none of imgrec's own, or that the job was stopped."""
        if isinstance(error, Stopped):
            self.status = "stopped"
            return
        line = str(error).strip().partition("\n")[0]
        self.status, self.refused = "failed", isinstance(error, ImgrecError)
        self.error = line if isinstance(error, ImgrecError | Died) else f"{type(error).__name__}: {line}"
        self.value = self.test_accuracy = self.test_interval = self.seconds = None

    def finish(self, result: dict[str, Any], monitor: str) -> None:
        """Note the figures of a result.json."""
        self.error, self.refused = "", False
        self.value = None if result["best"] is None else result["best"].get(monitor)
        threshold = dict(enumerate(self.thresholds, 1)).get(result["last"].get("epoch")) if self.thresholds else None
        is_worse = gt if monitor_mode(monitor) == "min" else lt
        pruned = threshold is not None and self.value is not None and is_worse(self.value, threshold)
        self.status = "pruned" if pruned else "finished"
        test = result["test"] or {}
        self.test_accuracy, self.test_interval = test.get("accuracy"), test.get("accuracy_interval")
        self.seconds = result["train_seconds"]

    def result(self) -> dict[str, Any] | None:
        """result.json of a job that has finished, else None."""
        run_dir = RunDir(Path(self.folder), "finished")
        return run_dir.result() if (run_dir.path / "result.json").exists() else None


@dataclass
class SweepFolder:
    """RUNS_DIR/NAME/sweep_K with a folder for each job. Several processes may work in it: each claims a job before it runs it.

    `close` it in the end.
    """

    path: Path
    arguments: list[str]  # of the command line, but for those that say where and how fast
    monitor: str
    jobs: list[Job] = field(default_factory=list)
    _locks: IO[str] | None = None

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Alone with sweep.json: read what other processes wrote, write what is changed inside."""
        self._lock(0, fcntl.LOCK_EX)
        try:
            if is_sweep_folder(self.path):
                self.jobs = read_sweep(self.path).jobs
            yield
            self._save()
        finally:
            self._lock(0, fcntl.LOCK_UN)

    def claim(self, job: Job) -> bool:
        """Keep other processes from running a job until `release` or the end of this process; False where one of them runs it."""
        return self._lock(1 + job.number, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self, job: Job) -> None:
        self._lock(1 + job.number, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give all claims back."""
        if self._locks is not None:
            self._locks.close()
            self._locks = None

    def _lock(self, byte: int, operation: int) -> bool:
        # A record lock for each job in one file: the kernel gives them back when the process ends, and no child inherits them.
        # They are lost when the file is closed, so it stays open.
        if self._locks is None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._locks = (self.path / ".lock").open("w")
        try:
            fcntl.lockf(self._locks, operation, 1, byte)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno not in NO_LOCKS:
                raise
        return True

    def add(self, overrides: list[str]) -> Job:
        """The job with these overrides, in any order and but for those that say where and how fast; a new one has the next number."""
        keys = {text.partition("=")[0] for text in self.arguments}

        def what(overrides: list[str]) -> list[str]:
            return sorted(text for text in overrides if text.partition("=")[0] in keys)

        same = (job for job in self.jobs if what(job.overrides) == what(overrides))
        return next(same, None) or self.append(overrides)

    def append(self, overrides: list[str], thresholds: Sequence[float] = ()) -> Job:
        """A job of the next number; where one with the same overrides is finished, it has the same folder, so the same result."""
        job = Job(len(self.jobs), overrides, str(self.path / str(len(self.jobs))), list(thresholds))
        for same in self.jobs:
            if same.overrides == overrides and same.status in HAVE_RESULT:
                job.folder, job.thresholds = same.folder, same.thresholds
        self.jobs.append(job)
        return job

    def varying(self) -> list[str]:
        """Keys that differ between jobs, in the order of the command."""
        keys = list(dict.fromkeys(key for job in self.jobs for key in job.settings()))
        return [key for key in keys if len({job.settings().get(key) for job in self.jobs}) > 1]

    def ranked(self) -> list[Job]:
        """Finished jobs, the best by `monitor` first, then those without a figure; equal ones in the order they were run."""
        sign = 1 if monitor_mode(self.monitor) == "min" else -1
        return sorted(self.jobs, key=lambda job: (job.status != "finished", job.value is None, sign * (job.value or 0.0)))

    def best(self) -> Job | None:
        """The first of `ranked`; None where no job with a figure is finished."""
        return next((job for job in self.ranked() if job.status == "finished" and job.value is not None), None)

    def _save(self) -> None:
        """Write sweep.json, from which a sweep is resumed, and sweep.csv."""
        jobs = [asdict(job) | {"folder": Path(job.folder).name} for job in self.ranked()]  # relative, as a sweep may be moved
        stored = {"arguments": self.arguments, "monitor": self.monitor, "jobs": jobs}
        atomic_write(self.path / "sweep.json", json.dumps(stored, indent=1))
        varying = self.varying()
        columns = ["rank", "job", "status", *varying, self.monitor, "test_accuracy", "train_seconds", "folder", "error"]
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(columns)
        for position, job in enumerate(self.ranked(), 1):
            settings = job.settings()
            rank = position if job.status == "finished" else ""
            values = [settings.get(key, "") for key in varying]
            figures = [job.value, job.test_accuracy, job.seconds]
            table.writerow([rank, job.number, job.status, *values, *figures, job.folder, job.error])
        atomic_write(self.path / "sweep.csv", text.getvalue())


def open_sweep_folder(plan: SweepPlan, id: str | None) -> SweepFolder:
    """`choose_sweep_folder`, and sweep.json written, so that a process that starts at the same moment chooses the same folder."""
    parent = Path(plan.base["runs_dir"]) / plan.name
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".sweeps.lock").open("w") as lock:
        lock_file(lock, fcntl.LOCK_EX)
        folder = choose_sweep_folder(plan, id)
        with folder.updating():
            return folder


def choose_sweep_folder(plan: SweepPlan, id: str | None) -> SweepFolder:
    """The folder that a sweep belongs in; nothing is written.

    With `id` that one; otherwise the newest sweep of the same arguments, finished or not, or the next free number. The number of
    trials, and keys that say where and how fast a run is computed, may differ. ConfigError when the folder holds something else.
    """
    base, arguments = plan.base, _identity(plan)
    parent = Path(base["runs_dir"]) / plan.name
    if id is not None:
        path = parent / id
        if (path / "config.yaml").exists():
            raise ConfigError(f"{path} holds a run, not a sweep. Set another id.")
        if not is_sweep_folder(path):
            return SweepFolder(path, arguments, base["monitor"])
        stored = read_sweep(path)
        if not base["resume"]:
            raise ConfigError(f"id={id} resume=false: {path} holds a sweep already. Set another id, or resume=true to finish it.")
        if sorted(stored.arguments) != sorted(arguments):
            raise ConfigError(f"{path} holds another sweep: {' '.join(stored.arguments)}. Set another id.")
        return stored
    numbers = [number for number, _ in numbered_paths(parent, "sweep_")]
    for number in reversed(numbers) if base["resume"] else ():
        path = parent / f"sweep_{number}"
        if is_sweep_folder(path) and sorted((stored := read_sweep(path)).arguments) == sorted(arguments):
            return stored
    return SweepFolder(parent / f"sweep_{max(numbers, default=0) + 1}", arguments, base["monitor"])


def _identity(plan: SweepPlan) -> list[str]:
    kind = [] if plan.trials is None else [SEARCH, f"{PRUNE}=true"] if plan.prune else [SEARCH]
    kind += [FROM_DEFAULTS] if plan.first is not None else []
    return [*kind, *(argument.text for argument in plan.arguments if argument.is_swept or argument.key not in RESUMABLE_KEYS)]


def is_sweep_folder(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / "sweep.json").exists()


def read_sweep(path: Path) -> SweepFolder:
    """The sweep of a folder; DataError for a sweep.json that was cut or changed."""
    file, fix = path / "sweep.json", f"Remove {path} if its jobs are not needed, or set another id, or resume=false."
    stored = read_mapping(file, {"arguments": list[str], "monitor": str, "jobs": list}, fix=fix)
    try:
        jobs = sorted((parse_settings(Job, job) for job in stored["jobs"]), key=lambda job: job.number)
        jobs = [replace(job, folder=str(path / job.folder)) for job in jobs]
    except (ConfigError, AttributeError) as error:  # AttributeError: a job that is no dictionary
        raise DataError(f"{file} was cut or changed: {first_line(error)}. {fix}") from error
    return SweepFolder(path, stored["arguments"], stored["monitor"], jobs)
