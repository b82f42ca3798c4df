"""Which checkpoint is tested at the end of a run: best.ckpt, where it still has the weights of the best epoch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgrec.config.schema import Node
from imgrec.distributed.process_group import on_first_rank
from imgrec.errors import CheckpointError
from imgrec.inference.checkpoint import read_checkpoint, weights_hash
from imgrec.paths import BEST, LAST


def read_best(folder: Path, weights: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """The content of best.ckpt where it can be read, and what is wrong unless it has the weights of this hash."""
    file = folder / BEST
    if not file.is_file():
        return None, f"{file} is missing."
    try:
        best = read_checkpoint(file, fix="")
    except CheckpointError as error:
        return None, str(error)
    return best, None if weights_hash(best) == weights else f"{file} has other weights than those of the best epoch."


@dataclass
class Tested:
    """The checkpoint that is tested at the end of a run."""

    name: str
    weights: Mapping[str, str]  # the hashes of best.ckpt, if there was one, and last.ckpt; on all ranks
    content: dict[str, Any]


def read_tested(folder: Path, weights: Mapping[str, str], say: Callable[[str], None]) -> Tested:
    """best.ckpt, or where that is lost last.ckpt, with a message unless it has the same weights. The same on all ranks."""
    best: dict[str, Any] | None = None  # on rank 0

    def find() -> tuple[str, Node]:
        nonlocal best
        best, problem = read_best(folder, weights.get(BEST))
        # There is none of last.ckpt where a run resumes after its last epoch.
        known = {LAST: weights[LAST] if LAST in weights else weights_hash(read_checkpoint(folder / LAST)), **weights}
        if problem is not None and known.get(BEST, known[LAST]) != known[LAST]:
            say(f"{problem} The weights of the last epoch are tested.")
        return LAST if problem else BEST, known

    name, known = on_first_rank(find)
    return Tested(name, known, best if name == BEST and best is not None else read_checkpoint(folder / name))
