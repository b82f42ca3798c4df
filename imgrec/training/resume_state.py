"""The rank state: what a rank needs beside weights and optimizer to resume bit for bit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from imgrec.data import counter_rng
from imgrec.training.lightning_compat import LoopPosition, Plain
from imgrec.training.module import Classifier


def take_rank_state(classifier: Classifier) -> Plain:
    """The state of this rank at a step boundary, in copies that later steps do not change, without waiting.

    Of the RNG states only torch's: networks use no other, and augmentation is a function of seed, epoch and image.
    They are uint8 tensors on the CPU, "cuda" is None on other devices; "sums" are on the classifier's device.
    """
    cuda = torch.cuda.get_rng_state(classifier.device) if classifier.device.type == "cuda" else None
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "threads": torch.get_num_threads(),
        "sums": classifier.training_sums(),
    }


def restore_rank_state(classifier: Classifier, states: Sequence[Plain], position: LoopPosition) -> None:
    """Restore the state of this rank from those of all ranks.

    With another world size rank 0 adds up all sums, so that metrics are equal up to rounding, and each rank is seeded
    by (seed, epoch, rank, steps done), as there is not one RNG state for each.
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
    """What a step changes before its optimizer: batch-norm statistics, RNG states and metric sums, before the step.

    A step that fails before the optimizer can be undone with it, and the run saved. Weights have not changed by then.
    """

    at: tuple[LoopPosition, Plain]

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
        """Restore the batch-norm statistics. Position and rank state are saved from `at`."""
        for dtype, buffers in self._buffers.items():
            torch._foreach_copy_(buffers, self._copies[dtype])
