"""The folder of a sweep: which one a command means, its jobs with their results, and their ranking in sweep.csv and sweep.json."""

import csv
import fcntl
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from imgrec.errors import ConfigError
from imgrec.files import atomic_write
from imgrec.training.run_dir import RESUMABLE_KEYS, lock_file, lock_folder


@dataclass
class Job:
    """A run of a sweep: its overrides, and what came of it."""

    number: int
    words: list[str]
    status: str = "started"  # waiting, started, stopped, finished, failed
    value: float | None = None  # the best `monitor`
    test_accuracy: float | None = None
    seconds: float | None = None  # of training
    folder: str = ""
    error: str = ""
    bad_input: bool = False  # was the error the user's to mend?

    def settings(self) -> dict[str, str]:
        """Key to value of its overrides."""
        return {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in self.words)}

    def fail(self, error: str, *, bad_input: bool) -> None:
        self.status, self.error, self.bad_input = "failed", error, bad_input
        self.value = self.test_accuracy = self.seconds = None

    def take(self, result: dict[str, Any], monitor: str) -> None:
        """Take the figures over from a result.json."""
        self.status, self.error, self.bad_input = "finished", "", False
        self.value = None if result["best"] is None else result["best"].get(monitor)
        self.test_accuracy = None if result["test"] is None else result["test"]["accuracy"]
        self.seconds = result["train_seconds"]


@dataclass
class SweepFolder:
    """RUNS_DIR/NAME/sweep_K with a folder for each job; open it with `with`, which keeps a second process out."""

    path: Path
    words: list[str]  # what was asked for
    monitor: str
    jobs: list[Job] = field(default_factory=list)
    _file: IO[str] | None = None

    def __enter__(self) -> "SweepFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        self._file = lock_folder(self.path)
        if self._file is None:
            raise ConfigError(f"{self.path} is in use by another process. Wait for it, or set id=ANOTHER.")
        return self

    def __exit__(self, *error: object) -> None:
        assert self._file is not None
        self._file.close()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """For a moment, alone with sweep.json: what is changed inside is written, on top of what other processes wrote before."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".table").open("w") as file:
            lock_file(file, fcntl.LOCK_EX)
            if (self.path / "sweep.json").exists():
                self.jobs = _read(self.path).jobs
            yield
            self.save()

    def job(self, words: list[str], status: str = "started") -> Job:
        """The job of these overrides; a new one has the next number."""
        for job in self.jobs:
            if job.words == words:
                return job
        job = Job(len(self.jobs), words, status)
        job.folder = str(self.path / str(job.number))
        self.jobs.append(job)
        return job

    def result(self, job: Job) -> dict[str, Any] | None:
        """result.json of a job that has finished, else None."""
        file = Path(job.folder) / "result.json"
        found: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
        return found

    def varying(self) -> list[str]:
        """Keys that differ between jobs, in the order of the command."""
        keys = list(dict.fromkeys(key for job in self.jobs for key in job.settings()))
        return [key for key in keys if len({job.settings().get(key) for job in self.jobs}) > 1]

    def ranked(self) -> list[Job]:
        """Finished jobs, the best by `monitor` first, then those without a figure; equal ones in the order they were run."""
        sign = 1 if self.monitor.endswith("loss") else -1
        return sorted(self.jobs, key=lambda job: (job.status != "finished", job.value is None, sign * (job.value or 0.0)))

    def save(self) -> None:
        """Write sweep.json, by which a sweep goes on, and sweep.csv."""
        kept = {"words": self.words, "monitor": self.monitor, "jobs": [asdict(job) for job in self.ranked()]}
        atomic_write(self.path / "sweep.json", json.dumps(kept, indent=1))
        columns = ["rank", "job", "status", *self.varying(), self.monitor, "test_accuracy", "train_seconds", "folder", "error"]
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(columns)
        for rank, job in enumerate(self.ranked(), 1):
            settings = job.settings()
            place = rank if job.status == "finished" else ""
            varying = [settings.get(key, "") for key in self.varying()]
            table.writerow(
                [place, job.number, job.status, *varying, job.value, job.test_accuracy, job.seconds, job.folder, job.error]
            )
        atomic_write(self.path / "sweep.csv", text.getvalue())


def choose_sweep_folder(
    *, runs_dir: str, name: str, id: str | None, resume: bool, words: Sequence[str], monitor: str
) -> SweepFolder:
    """The folder that a sweep belongs in; nothing is written.

    With `id` that one; otherwise the newest sweep of the same words, finished or not, or the next free number. Number of trials, and keys
    that say where and how fast a run is computed, may differ. ConfigError when the folder holds something else.
    """
    asked = [word for word in words if _matters(word)]
    parent = Path(runs_dir) / name
    if id is not None:
        path = parent / id
        if (path / "config.yaml").exists():
            raise ConfigError(f"{path} holds a run, not a sweep. Set another id.")
        if not (path / "sweep.json").exists():
            return SweepFolder(path, asked, monitor)
        found = _read(path)
        if not resume:
            raise ConfigError(f"id={id} resume=false: {path} holds a sweep already. Set another id, or resume=true to finish it.")
        if sorted(found.words) != sorted(asked):
            raise ConfigError(f"{path} holds another sweep: {' '.join(found.words)}. Set another id.")
        return found
    places = {
        int(path.name.removeprefix("sweep_")): path
        for path in parent.glob("sweep_*")
        if path.name.removeprefix("sweep_").isdecimal()
    }
    for number in sorted(places, reverse=True):
        if (
            resume
            and (places[number] / "sweep.json").exists()
            and sorted((found := _read(places[number])).words) == sorted(asked)
        ):
            return found
    return SweepFolder(parent / f"sweep_{max(places, default=0) + 1}", asked, monitor)


def _matters(word: str) -> bool:
    key, _, value = word.lstrip("+").partition("=")
    return key != "hydra.sweeper.n_trials" and (key not in RESUMABLE_KEYS or _is_sweep(value))


def _is_sweep(value: str) -> bool:
    """Does a sweep follow `key=`? Lists are values: [0.9,0.999]."""
    return not value.startswith(("[", "{", "'", '"')) and ("," in value or "(" in value)


def _read(path: Path) -> SweepFolder:
    kept = json.loads((path / "sweep.json").read_text())
    jobs = sorted((Job(**job) for job in kept["jobs"]), key=lambda job: job.number)
    return SweepFolder(path, kept["words"], kept["monitor"], jobs)
