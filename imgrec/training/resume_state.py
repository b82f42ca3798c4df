"""What a run needs beside weights and optimizer to go on bit for bit: its place in the epoch, and what each process had in hand."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from imgrec.data import counter_rng
from imgrec.training.module import Classifier

COUNTS = ("ready", "started", "processed", "completed")  # of one of Lightning's progress trackers
Plain = dict[str, Any]  # tensors, numbers and words: what loads with weights_only=True


@dataclass(frozen=True)
class LoopPosition:
    """Where in its run a checkpoint was taken: always between two optimizer steps."""

    epoch: int  # finished epochs
    done: int  # global batches done in the next one
    stage: Literal[
        "train", "validate", "end"
    ]  # validate: the epoch's steps are done and its validation is not; end: nothing is left to train
    step: int  # optimizer steps so far

    def to_dict(self) -> Plain:
        return asdict(self)


def loop_position(trainer: pl.Trainer) -> LoopPosition:
    """The place of a trainer between two steps, or in a validation, which starts anew."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    whole = batches >= trainer.num_training_batches
    done = -(-batches // trainer.accumulate_grad_batches) if whole else batches // trainer.accumulate_grad_batches
    epochs = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    return LoopPosition(epochs, done, "validate" if whole else "train", trainer.global_step)


def set_loop_position(loops: Plain, place: LoopPosition, *, batches: int, accumulate: int) -> None:
    """Write a place into the loops of a Lightning checkpoint, for epochs of `batches` micro-batches, `accumulate` of them a step.

    The number of micro-batches depends on the number of processes, so the counts are made here and not taken as they were saved. Lightning
    itself would skip the validation of a run that was stopped in it, and take the first step of an epoch for the last one's end.
    """
    fit = loops["fit_loop"]
    done = batches if place.stage == "validate" else min(place.done * accumulate, batches)
    begun = place.epoch + (done > 0)  # an epoch of which nothing is done is begun anew, with its hooks
    for count in ("total", "current"):
        fit["epoch_progress"][count].update(ready=begun, started=begun, processed=place.epoch, completed=place.epoch)
    progress = fit["epoch_loop.batch_progress"]
    progress["is_last_batch"] = place.stage == "validate"
    progress["total"].update(dict.fromkeys(COUNTS, place.epoch * batches + done))
    progress["current"].update(dict.fromkeys(COUNTS, done))
    # Validation counts as interrupted, before its first batch, or as not begun.
    validation = fit["epoch_loop.val_loop.batch_progress"]
    interrupted = int(place.stage == "validate")
    validation["is_last_batch"] = False
    validation["current"].update(dict.fromkeys(COUNTS, 0))
    validation["total"].update(ready=interrupted, started=interrupted, processed=0, completed=0)
    # Lightning's x-axis. It counts a step when the validation after it is over.
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] = place.step - interrupted


class RankState(NamedTuple):
    """What one process has in hand between two steps, cheap to take: nothing here waits for the device.

    Of the random states only torch's: networks draw from no other, and what augmentation draws is a function of seed, epoch and image.
    """

    torch: Tensor
    cuda: Tensor | None
    sums: list[Tensor]  # of the epoch's training figures


def rank_state(classifier: Classifier) -> RankState:
    cuda = torch.cuda.get_rng_state(classifier.device) if classifier.device.type == "cuda" else None
    return RankState(torch.get_rng_state(), cuda, [value.clone() for value in classifier.training_sums()])


def to_plain_data(held: RankState) -> Plain:
    """As it is saved: it loads with weights_only=True."""
    return {"torch": held.torch, "cuda": held.cuda, "sums": [value.cpu() for value in held.sums]}


def restore_rank_state(classifier: Classifier, states: Sequence[Plain], place: LoopPosition) -> None:
    """Give this process what it had in hand.

    On another number of processes the first one takes all sums, which gives the same figures up to rounding, and each process draws anew from
    (seed, epoch, rank, steps done): the randomness of one is not enough for two.
    """
    world, rank = classifier.trainer.world_size, classifier.global_rank
    if len(states) != world:
        torch.manual_seed(counter_rng.word(classifier.seed, place.epoch, rank, counter_rng.NETWORK, place.done) >> 1)
        if rank == 0:
            classifier.add_training_sums([torch.stack(parts).sum(0) for parts in zip(*(s["sums"] for s in states), strict=True)])
        return
    state = states[rank]
    classifier.add_training_sums(state["sums"])
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and classifier.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), classifier.device)


class StepSnapshot:
    """What a step changes before its optimizer does (batch-norm statistics, random states, sums), as it was between two steps.

    So a step that fails halfway is taken back, and the run can be saved as it was before it. Weights are not copied: they have not changed yet.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._buffers: dict[torch.dtype, list[Tensor]] = {}  # by their kind, as each kind is copied at once
        for buffer in classifier.net.buffers():
            self._buffers.setdefault(buffer.dtype, []).append(buffer)
        self._kept = {dtype: [buffer.clone() for buffer in buffers] for dtype, buffers in self._buffers.items()}

    def take(self, place: LoopPosition) -> None:
        self.move(place)
        for dtype, buffers in self._buffers.items():
            torch._foreach_copy_(self._kept[dtype], buffers)

    def move(self, place: LoopPosition) -> None:
        """Only what the process has in hand: an average may stand in for the buffers."""
        self.at = place, rank_state(self.classifier)  # in one assignment: the heartbeat's thread may read it

    def put_back(self) -> None:
        """The buffers; the place, and what the process had in hand there, are in `at`."""
        for dtype, buffers in self._buffers.items():
            torch._foreach_copy_(buffers, self._kept[dtype])
