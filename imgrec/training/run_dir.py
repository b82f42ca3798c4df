"""The run directory RUNS_DIR/NAME/ID: which one a command uses, and the state of the run in it."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from imgrec.config.plain_data import dump_yaml, read_mapping
from imgrec.config.schema import Node, RunConfig
from imgrec.distributed.process_group import on_first_rank
from imgrec.distributed.world import RUN_DIR_VARIABLE, read_world
from imgrec.errors import ConfigError, DataError, ImgrecError, OutOfMemory
from imgrec.files import atomic_write, did_you_mean_path, is_directory_name, is_utf8, numbered_paths
from imgrec.inference.prediction_table import PredictionFiles
from imgrec.locks import is_locked, lock_folder
from imgrec.paths import BEST, CHECKPOINTS, LAST, PREVIOUS, name_run
from imgrec.training.config_difference import MOVABLE, differing_keys, listed_differences
from imgrec.training.measured_file import MEASURED_FILE

BATCH = "batch.json"
TRAIN_BATCH = "train_batch.png"  # in a run directory: the first batch, as the network saw it
LOST_LOCK_S = 120.0  # an NFSv4 server releases the locks of a lost machine after 90 s
# What is read of a result.json.
RESULT = {
    "summary": str, "best": dict | None, "last": dict, "test": dict | None, "train_seconds": float, "weights": dict | None,
    MEASURED_FILE: dict | None,
}  # fmt: skip


@dataclass
class RunDir:
    """A run directory; while it is open, its lock keeps other processes out."""

    path: Path
    state: Literal["new", "unfinished", "finished"]
    lock: IO[str] | None = None
    damaged: tuple[str, ...] = ()  # errors of unfinished runs beside it whose config.yaml cannot be read

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints; it exists from the first save on."""
        return self.path / CHECKPOINTS

    @property
    def last(self) -> Path:
        """The newest checkpoint, from which the run is resumed; there is none before the first save."""
        return self.checkpoints / LAST

    @property
    def previous(self) -> Path:
        """The one before, for the case that the newest is damaged; there is none of a finished run."""
        return self.checkpoints / PREVIOUS

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch by `monitor`; there is none before the first epoch has ended."""
        return self.checkpoints / BEST

    @property
    def batch(self) -> Path:
        """How many images the run computes at once, where that was chosen; see imgrec.training.batch_choice."""
        return self.path / BATCH

    @property
    def prediction_files(self) -> PredictionFiles:
        """What shows the test at the end."""
        return PredictionFiles(self.path / "errors.csv", self.path / "errors.png", self.path / "predictions.parquet")

    def result(self) -> dict[str, Any]:
        """result.json of a finished run; DataError where that was cut or changed."""
        return read_mapping(self.path / "result.json", RESULT, fix="Remove it: the same command then finishes the run again.")

    @contextmanager
    def opened(self, run: RunConfig) -> Iterator[None]:
        """Create the directory, lock it and write the resolved config, on rank 0; its errors are raised on all ranks.

        A new run that is refused before its first checkpoint leaves no directory. For ranks that
        imgrec.distributed.launcher started, their parent has done so; they inherit its lock, held while one of them lives.
        """
        if RUN_DIR_VARIABLE not in os.environ:
            on_first_rank(lambda: self._start(run))
        try:
            yield
        except OutOfMemory:  # the next start reads `batch`, and in a directory of this config
            raise
        except (ImgrecError, OSError):
            if self.state == "new" and not read_world().rank and not self.checkpoints.exists():
                for name in ("config.yaml", "log.txt", BATCH, TRAIN_BATCH, ".lock"):
                    (self.path / name).unlink(missing_ok=True)
                for directory in (self.path, self.path.parent):
                    if not any(directory.iterdir()):
                        directory.rmdir()
            raise
        finally:
            if self.lock is not None:
                self.lock.close()
                self.lock = None

    def record(self, result: dict[str, Any]) -> None:
        """Write result.json, with which the run is finished."""
        atomic_write(self.path / "result.json", json.dumps(result, indent=1))
        self.previous.unlink(missing_ok=True)

    def _start(self, run: RunConfig) -> None:
        try:
            self._lock_and_write(run)
        except OSError as error:
            raise ConfigError(
                f"{error.filename or self.path} cannot be written: {error.strerror}. Set runs_dir=FOLDER in which you can write."
            ) from error

    def _lock_and_write(self, run: RunConfig) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        # A job that is requeued after its node was lost: on a network file system the node's lock may outlive it.
        end = time.monotonic() + (LOST_LOCK_S if "SLURM_RESTART_COUNT" in os.environ else 0)
        while (lock := lock_folder(self.path)) is None:
            if time.monotonic() >= end:
                raise ConfigError(f"{self.path} is in use by another process. Wait until it ends, or set another id=ID.")
            time.sleep(1)
        self.lock = lock
        for unfinished in self.checkpoints.glob("*.unfinished"):  # of a start that was killed while it wrote
            unfinished.unlink()
        if self.state == "new":
            self.batch.unlink(missing_ok=True)  # of a run that ended before its first save
            self._write_config(run.to_dict())

    def take_more_epochs(self, epochs: int) -> None:
        """Make a run that is to be trained on an unfinished one of so many epochs. The rest of its config stays as it was typed.

        Killed between the two it is an unfinished run of fewer epochs, which the same command takes for what it is.
        """
        config = _config(self.path) | {"epochs": epochs}
        (self.path / "result.json").unlink(missing_ok=True)
        self._write_config(config)

    def _write_config(self, config: Node) -> None:
        atomic_write(self.path / "config.yaml", dump_yaml(config))


def join_run_dir(run: RunConfig) -> RunDir:
    """The run directory of all ranks of the run: rank 0 chooses it. Nothing is written."""
    if RUN_DIR_VARIABLE in os.environ:
        path = Path(os.environ[RUN_DIR_VARIABLE])
        state = _state(path)
        return RunDir(path, "unfinished" if state == "finished" and fewer_epochs(run, path) else state)
    return on_first_rank(lambda: choose_run_dir(run))


def choose_run_dir(run: RunConfig) -> RunDir:
    """The directory that the run belongs in. Nothing is written.

    With `id`, or in a SLURM job, that one; otherwise the newest unfinished run of the same config that no process uses,
    also where newer ones are finished or have another config, or the next free number. A finished run of fewer epochs is
    unfinished. Raises ConfigError where it holds a run of another config, unless that was not trained up to its first save.
    """
    job = os.environ.get("SLURM_JOB_ID") or None
    for key, value in (("name", run.name), ("id", run.id), ("SLURM_JOB_ID", job)):
        if value is not None and not is_directory_name(value):
            raise ConfigError(
                f"{key}={value}: expected a name for a directory, without a slash. Set {key}=NAME, or runs_dir=FOLDER."
            )
    for key, value in (("runs_dir", run.runs_dir), ("name", run.name), ("id", run.id)):
        if value is not None and not is_utf8(value):
            raise ConfigError(f"{key}={value}: expected UTF-8, as TensorBoard opens no other path. Set another {key}.")
    parent = Path(run.runs_dir) / run.name
    run_id = run.id or job
    if run_id:
        path = parent / run_id
        state = _state(path)
        is_saved = state != "unfinished" or any((path / CHECKPOINTS).glob("*.ckpt"))
        if not is_saved and not (run.resume and _is_of(run, path)) and not is_locked(path):
            return RunDir(path, "new")
        if state != "new" and not run.resume:
            raise ConfigError(f"id={run_id} resume=false: {path} holds a run already. Set another id, or resume=true.")
        if state != "new" and (differ := differing_keys(run, _config(path))):
            if fewer_epochs(run, path):
                if not (path / CHECKPOINTS / LAST).exists():
                    raise ConfigError(f"{path} has no {CHECKPOINTS}/{LAST}, from which it could be trained on. Set another id.")
                return RunDir(path, "unfinished")
            raise ConfigError(
                f"{path} holds a run of another config: {listed_differences(differ)}. Set another id, or the values of that run."
            )
        return RunDir(path, state)
    return _choose_number(run, parent)


def _choose_number(run: RunConfig, parent: Path) -> RunDir:
    """`choose_run_dir` without an id."""
    numbered = numbered_paths(parent)
    damaged: list[str] = []
    for _, path in reversed(numbered if run.resume else []):
        if _state(path) != "unfinished":
            continue
        try:
            is_same = not differing_keys(run, _config(path))
        except DataError as error:
            damaged.append(str(error))
            continue
        if is_same and not is_locked(path):
            return RunDir(path, "unfinished", damaged=tuple(damaged))
    return RunDir(parent / str(numbered[-1][0] + 1 if numbered else 1), "new", damaged=tuple(damaged))


def _is_of(run: RunConfig, path: Path) -> bool:
    """Whether a directory is one of `run`; not where its config cannot be read."""
    try:
        return not differing_keys(run, _config(path))
    except DataError:
        return False


def _state(path: Path) -> Literal["new", "unfinished", "finished"]:
    if (path / "result.json").exists():
        return "finished"
    return "unfinished" if (path / "config.yaml").exists() else "new"


def _config(path: Path) -> Node:
    fix = f"Remove {path} if its run is not needed, or set another id."
    return read_mapping(path / "config.yaml", {}, fix=fix)


# Of these, keys that `check_continued` compares: what the weights and the state of the optimizer belong to, and the splits.
CONTINUED = ("model.", "data.", "optim._target_")


def check_continued(run: RunConfig) -> None:
    """ConfigError unless `continue_from` is a finished run with the same network, data and optimizer."""
    assert run.continue_from is not None
    path, given = Path(run.continue_from), f"continue_from={run.continue_from}"
    fix = "Set continue_from=RUNS_DIR/NAME/ID of a finished run."
    if _state(path) == "new":
        raise ConfigError(f"{given} is no run directory.{did_you_mean_path(path)} {name_run(path, fix)}")
    if _state(path) == "unfinished":
        raise ConfigError(f"{given} is not finished. Start its command again first. {fix}")
    if (before := _config(path)).get("parent") is not None:
        raise ConfigError(
            f"{given} has the classes of imgrec extend, and is not continued. "
            f"Type imgrec extend {before['weights']} data.root=FOLDER with more epochs, or imgrec extend {path} data.root=FOLDER for more classes."
        )
    if "soup" in before:
        raise ConfigError(
            f"{given} is a mean of runs, which has no state of an optimizer. Set weights={path} to begin with its weights."
        )
    differ = differing_keys(run, before)
    differ = {key: differ[key] for key in differ if key.startswith(CONTINUED) and key not in MOVABLE}
    if differ:
        raise ConfigError(f"{given}: that run differs: {listed_differences(differ)}. Set the values of that run.")


def fewer_epochs(run: RunConfig, path: Path) -> int | None:
    """The epochs of the run in `path`, where it is `run` with fewer of them; with `time` their number is no setting."""
    differ = differing_keys(run, _config(path))
    if run.time is not None or differ.keys() != {"epochs"}:
        return None
    before = differ["epochs"][1]
    return before if isinstance(before, int) and before < run.epochs else None
