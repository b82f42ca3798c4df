"""The rank state: what a rank needs beside weights and optimizer to resume bit for bit."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from imgrec.data import counter_rng
from imgrec.training.lightning_compat import LoopPosition, Plain
from imgrec.training.module import Classifier


class RankState(NamedTuple):
    """What a rank restores, as it was at a step boundary; cheap to take, as nothing here waits for the device.

    Of the RNG states only torch's: networks draw from no other, and what augmentation draws is a function of seed, epoch and image.
    """

    torch: Tensor
    cuda: Tensor | None
    sums: list[Tensor]  # of the epoch's training metrics


def take_rank_state(classifier: Classifier) -> RankState:
    cuda = torch.cuda.get_rng_state(classifier.device) if classifier.device.type == "cuda" else None
    return RankState(torch.get_rng_state(), cuda, [value.clone() for value in classifier.training_sums()])


def to_plain_data(state: RankState) -> Plain:
    """As it is saved: it loads with weights_only=True."""
    return {"torch": state.torch, "cuda": state.cuda, "sums": [value.cpu() for value in state.sums]}


def restore_rank_state(classifier: Classifier, states: Sequence[Plain], position: LoopPosition) -> None:
    """Give this rank its state out of those of all ranks.

    With another world size rank 0 takes all sums, which gives the same metrics up to rounding, and each rank draws anew from (seed, epoch, rank,
    steps done): the random numbers of one are not enough for two.
    """
    world, rank = classifier.trainer.world_size, classifier.global_rank
    if len(states) != world:
        torch.manual_seed(counter_rng.word(classifier.seed, position.epoch, rank, counter_rng.NETWORK, position.done) >> 1)
        if rank == 0:
            classifier.add_training_sums([torch.stack(parts).sum(0) for parts in zip(*(s["sums"] for s in states), strict=True)])
        return
    state = states[rank]
    classifier.add_training_sums(state["sums"])
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and classifier.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), classifier.device)


class StepSnapshot:
    """What a step changes before its optimizer does (batch-norm statistics, RNG states, metric sums), as it was at the step boundary before.

    So a step that fails halfway can be undone, and the run saved as it was before it. Weights are not copied: they have not changed yet.
    """

    at: tuple[LoopPosition, RankState]

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._buffers: dict[torch.dtype, list[Tensor]] = {}  # by dtype, as those of one are copied at once
        for buffer in classifier.net.buffers():
            self._buffers.setdefault(buffer.dtype, []).append(buffer)
        self._copies = {dtype: [buffer.clone() for buffer in buffers] for dtype, buffers in self._buffers.items()}

    def take(self, position: LoopPosition) -> None:
        self.at = position, take_rank_state(self.classifier)
        for dtype, buffers in self._buffers.items():
            torch._foreach_copy_(self._copies[dtype], buffers)

    def restore_buffers(self) -> None:
        """Position and rank state are in `at`: they are saved from there."""
        for dtype, buffers in self._buffers.items():
            torch._foreach_copy_(buffers, self._copies[dtype])
