"""Where an unfinished run resumes: its newest whole checkpoint, and whether that is one of Lightning's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgrec.config.annotations import check_type
from imgrec.config.schema import Node, Precision, parse_settings
from imgrec.distributed.process_group import on_first_rank
from imgrec.errors import CheckpointError, ConfigError, DamagedError, first_line
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.inference.device import is_out_of_memory
from imgrec.inference.metadata import TEACHER, TRAINED
from imgrec.paths import BEST, LAST, PREVIOUS
from imgrec.training.lightning_compat import LoopPosition
from imgrec.training.tested_checkpoint import read_best

# Lightning's part of a checkpoint, without which it would resume as if nothing had been there.
LIGHTNING_PARTS: dict[str, Any] = {
    "global_step": int, "epoch": int, "pytorch-lightning_version": str, "loops": dict, "callbacks": dict,
    "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip


@dataclass
class ResumePoint:
    """Where an unfinished run resumes: its newest whole checkpoint, and the "resume" entry of that."""

    file: Path
    state: Node
    lost_best: bool  # whether best.ckpt does not hold the best weights so far
    saved_at: float  # time.time()
    epochs: int  # of the config that it was saved with; `epochs` may have become more since
    teacher: str | None  # the hash of the weights of distill.teacher
    checkpoint: dict[str, Any] | None = None  # on rank 0, until it is loaded: training does not hold it in memory

    @property
    def position(self) -> LoopPosition:
        return LoopPosition(**self.state["position"])

    @property
    def start(self) -> tuple[int, int]:
        """(epoch, global batches of it already done)"""
        return self.position.epoch, self.position.done

    def threads(self, rank: int, size: int) -> int | None:
        """How many this rank computed with; None with another world size."""
        ranks = self.state["ranks"]
        return ranks[rank].get("threads") if len(ranks) == size else None

    @property
    def precision(self) -> Precision | None:
        """What trainer.precision=auto stood for; None in checkpoints of before there was auto."""
        precision: Precision | None = self.state.get("precision")
        return precision

    @property
    def left_out(self) -> set[str]:
        """The unreadable images that all ranks had met so far."""
        return {path for rank in self.state["ranks"] for path in rank.get("left_out", ())}

    @property
    def best(self) -> str | None:
        """The hash of the best weights so far, None before the first epoch has ended."""
        return self.state.get("best")

    def load(self) -> dict[str, Any]:
        checkpoint, self.checkpoint = self.checkpoint, None
        return read_checkpoint(self.file) if checkpoint is None else checkpoint


def find_resume_point(folder: Path, say: Callable[[str], None], epochs: int) -> ResumePoint | None:
    """Where the run with these checkpoints resumes, the same on all ranks; None where nothing was saved yet.

    epochs: of the run. One that was trained to the end of fewer resumes there.

    A damaged checkpoint is left out, with a message. CheckpointError where none is left, or the format is another.
    """
    checkpoint: dict[str, Any] | None = None  # on rank 0, from which the others get the file's name and the entry alone

    def find() -> tuple[Path, Node, bool, float, int, str | None] | None:
        nonlocal checkpoint
        if (latest := latest_checkpoint(folder, say)) is None:
            return None
        file, checkpoint = latest
        position, before = checkpoint["resume"]["position"], checkpoint["imgrec"]["config"]["epochs"]
        if position["stage"] == "end" and position["epoch"] == before < epochs:  # else it ended early, or is complete
            position["stage"] = "train"
        teacher = checkpoint["imgrec"].get(TEACHER, {}).get("weights")
        return file, checkpoint["resume"], _has_lost_best(folder, checkpoint, say), file.stat().st_mtime, before, teacher

    point = on_first_rank(find)
    return None if point is None else ResumePoint(*point, checkpoint)


def latest_checkpoint(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint in the folder; see `find_resume_point`."""
    files = [file for file in (folder / LAST, folder / PREVIOUS) if file.is_file()]
    if not files and (folder / BEST).is_file():
        say(f"{folder} has neither {LAST} nor {PREVIOUS}: the run starts again with its first epoch.")
    for file in files:
        weights = f"weights={folder / BEST} " if (folder / BEST).is_file() else ""
        none_left = f"It was the last that can be resumed. Set resume=false {weights}to start a new run."
        try:
            checkpoint = read_checkpoint(file, fix=none_left if file == files[-1] else "The save before it is used.")
        except DamagedError as error:
            if file == files[-1]:
                raise
            say(str(error))
            continue
        _check_resumable(checkpoint, file)
        return file, checkpoint
    return None


def _check_resumable(checkpoint: dict[str, Any], file: Path) -> None:
    """CheckpointError where a checkpoint lacks what is read of it before Lightning restores the rest, see `restoring`."""
    resume: Node = checkpoint.get("resume", {})
    try:
        check_lightning_parts(checkpoint)
        check_type("'resume'", resume, dict)
        for key, kind in {
            "position": dict,
            "ranks": list[Node],
            "events": dict,
            "best": str | None,
            "precision": Precision | None,
        }.items():
            check_type(f"resume.{key}", resume.get(key), kind)
        for rank in resume["ranks"]:
            check_type("resume.ranks.left_out", rank.get("left_out", []), list[str])
        position = parse_settings(LoopPosition, resume["position"], "resume.position.")
        if position.step != checkpoint["global_step"] or min(position.epoch, position.done, checkpoint["epoch"]) < 0:
            raise ConfigError(f"resume.position={resume['position']}: expected that of step {checkpoint['global_step']}.")
    except ConfigError as error:
        raise CheckpointError(f"{file} cannot be resumed: {error} Set resume=false to start a new run.") from error


def check_lightning_parts(checkpoint: dict[str, Any]) -> None:
    """ConfigError for a part that is missing or of another type; what the optimizer's state holds is checked when it is loaded."""
    for key, kind in LIGHTNING_PARTS.items():
        check_type(f"'{key}'", checkpoint.get(key), kind)
    if (number := len(checkpoint["optimizer_states"])) != 1:
        raise ConfigError(f"'optimizer_states' has {number} entries, expected 1.")
    (optimizer,) = checkpoint["optimizer_states"]
    check_type("optimizer_states[0]", optimizer, dict)
    for key, kind in {"state": dict, "param_groups": list[Node]}.items():
        check_type(f"optimizer_states[0].{key}", optimizer.get(key), kind)
    for group in optimizer["param_groups"]:
        for key, kind in {"params": list, "lr": float}.items():
            check_type(f"optimizer_states[0].param_groups.{key}", group.get(key), kind)
    if (TRAINED in checkpoint) != ("averaging_state" in checkpoint):
        raise ConfigError(f"it has one of '{TRAINED}' and 'averaging_state', and lacks the other.")


@contextmanager
def restoring(resume: ResumePoint | None, is_restored: Callable[[], bool]) -> Iterator[None]:
    """CheckpointError for what is raised before the state of a checkpoint is restored: torch and Lightning check no types."""
    if resume is None:
        yield
        return
    with refusing(f"{resume.file} cannot be resumed", "Set resume=false to start a new run.", is_restored):
        yield


@contextmanager
def refusing(problem: str, fix: str, is_restored: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """CheckpointError with these words for what torch and Lightning raise; see `restoring`."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_restored() or is_out_of_memory(error):
            raise
        raise CheckpointError(f"{problem}: {type(error).__name__}: {first_line(error)}. {fix}") from error


def _has_lost_best(folder: Path, latest: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Whether best.ckpt no longer has the weights that were the best when `latest` was saved, with a message.

    Those of a later step are no loss: the epoch that saved them is trained again. After the last epoch see `read_tested`.
    """
    weights, stage = latest["resume"].get("best"), latest["resume"]["position"]["stage"]
    if weights is None or stage == "end":
        return False
    best, problem = read_best(folder, weights)
    if problem is None or (best is not None and best["global_step"] > latest["global_step"]):
        return False
    say(f"{problem} The best epoch is chosen from those that are left to train.")
    return True
