"""continue_from=RUN: a run that starts where a finished one ended, with a schedule of its own."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch import nn

from imgrec.config.schema import RunConfig
from imgrec.data.split_record import DataRecord, other_classes
from imgrec.errors import CheckpointError, ConfigError, DataError, plural
from imgrec.inference.checkpoint import network_state, read_checkpoint
from imgrec.inference.metadata import TRAINED
from imgrec.paths import CHECKPOINTS, LAST
from imgrec.training.distill import Teacher, read_teacher
from imgrec.training.resume_point import ResumePoint, check_lightning_parts, refusing
from imgrec.training.seen_images import seen_sentence
from imgrec.training.transfer import initial_network, record_of_weights

FIX = "Set weights=RUN_DIRECTORY to start from the best weights alone."


def starting_network(
    run: RunConfig, classes: Sequence[str], resume: ResumePoint | None, record: DataRecord | None
) -> tuple[nn.Module, Teacher | None, dict[str, str], list[pl.Callback]]:
    """The network, its teacher, what the start screen says of its weights, and of a run that continues another what restores the rest.

    record: of the images of the run, where this process writes the start screen.
    """
    teacher = read_teacher(run, classes, resume, record)
    if run.continue_from is None or resume is not None:
        of_teacher = teacher.seen if teacher else ""
        of_network = seen_sentence("the network of weights", partial(record_of_weights, run), record)
        seen = "\n".join(filter(None, (of_teacher, of_network)))
        net, of_weights = initial_network(run, classes)
        return net, teacher, of_weights | ({"seen": seen} if seen else {}), []
    continued, (net, _) = read_continued(run.continue_from, classes), initial_network(replace(run, weights=None), classes)
    return net, teacher, {"weights": continued.restore_network(net)}, [continued]


def read_continued(run_directory: str, classes: Sequence[str]) -> "ContinuedRun":
    """The end of a run; DataError where the data has other classes, CheckpointError where its last checkpoint cannot be read."""
    file = Path(run_directory) / CHECKPOINTS / LAST
    checkpoint = read_checkpoint(file, fix=FIX)
    try:
        check_lightning_parts(checkpoint)
    except ConfigError as error:
        raise CheckpointError(f"{_problem(run_directory)}: {error} {FIX}") from error
    if other := other_classes(checkpoint["imgrec"]["classes"], classes):
        raise DataError(f"continue_from={run_directory}: the data has {other}. Set data.root=FOLDER as it was.")
    return ContinuedRun(run_directory, checkpoint)


def _problem(run_directory: str) -> str:
    return f"continue_from={run_directory}: its {CHECKPOINTS}/{LAST} cannot be continued"


class ContinuedRun(pl.Callback):
    """The last checkpoint of a finished run, of which a new one takes the weights, their average and the state of the optimizer.

    The rates and other settings of the optimizer are the new run's. It stands behind the average among the callbacks.
    """

    def __init__(self, run_directory: str, checkpoint: dict[str, Any]) -> None:
        self.run_directory, self._checkpoint = run_directory, checkpoint

    def restore_network(self, net: nn.Module) -> str:
        """Give a network the trained weights; says what was taken."""
        with self._refusing():
            net.load_state_dict(network_state({"state_dict": self._checkpoint.get(TRAINED, self._checkpoint["state_dict"])}))
        return f"{self.run_directory} is continued: its weights and the state of its optimizer after {plural(self._checkpoint['epoch'], 'epoch')}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if stage == "fit" and isinstance(callback, WeightAveraging) and TRAINED in self._checkpoint:
                with self._refusing():
                    callback.on_load_checkpoint(trainer, pl_module, self._checkpoint)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (new,), (old,) = (optimizer.state_dict() for optimizer in trainer.optimizers), self._checkpoint["optimizer_states"]
        sizes, others = ([len(group["params"]) for group in state["param_groups"]] for state in (new, old))
        if sizes != others:
            raise ConfigError(
                f"continue_from={self.run_directory}: its optimizer has groups of {others} parameters, this run's of {sizes}. "
                "Set optim.weight_decay, decay_on and finetune.layer_decay as in that run."
            )
        with self._refusing():
            trainer.strategy.load_optimizer_state_dict({"optimizer_states": [{**new, "state": old["state"]}]})
        self._checkpoint = {}  # training does not hold it in memory

    def _refusing(self) -> AbstractContextManager[None]:
        return refusing(_problem(self.run_directory), FIX)
