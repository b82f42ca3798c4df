"""distill.teacher=RUN: a finished network, the teacher, whose answers are learned beside the labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgrec.config.instantiate import build
from imgrec.config.schema import Node, RunConfig
from imgrec.config.stored_classes import check_teacher_classes
from imgrec.data.preprocess import Preprocess
from imgrec.data.split_record import DataRecord
from imgrec.errors import CheckpointError, ConfigError, ImgrecError
from imgrec.inference.checkpoint import Checkpoint, load_checkpoint, weights_hash
from imgrec.models.losses import Loss, distillation, is_softmax
from imgrec.training.resume_point import ResumePoint
from imgrec.training.seen_images import seen_sentence


class Teacher:
    """Adds to the losses of a batch what a trained network answers for the same images (Hinton 2015, arXiv 1503.02531).

    It sees them as they were augmented for the student (Beyer 2022, arXiv 2106.05237), in its own size and normalisation.
    No nn.Module, so that its weights are in no checkpoint of the student, no optimizer, no average and no other rank.
    """

    def __init__(self, run: RunConfig, checkpoint: Checkpoint, rows: Sequence[int], record: DataRecord | None = None) -> None:
        """rows: of the teacher's logits, in the order of the student's classes. record: of the student's images, for `seen`."""
        self.alpha, self.temperature = run.distill.alpha, run.distill.temperature
        self.file, self.weights = checkpoint.file, weights_hash(checkpoint.content)
        self.seen = seen_sentence("the teacher", checkpoint.record, record)
        steps = checkpoint.preprocessing
        self.preprocess = Preprocess(
            image_size=steps["image_size"], mean=steps["mean"], std=steps["std"], interpolation=steps["interpolation"]
        )
        self.same_normalisation = [steps["mean"], steps["std"]] == [run.data.mean, run.data.std]
        self.memory_format = torch.channels_last if run.trainer.channels_last else torch.contiguous_format
        with torch.random.fork_rng(devices=[]):  # the student's first weights are those that it has without a teacher
            net = checkpoint.network()
        self.net = net.to(memory_format=self.memory_format).eval().requires_grad_(False)
        self.rows = None if list(rows) == list(range(len(checkpoint.classes))) else torch.tensor(rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        return self  # an average of the weights copies the student with all that it has

    def to(self, device: torch.device) -> None:
        self.net, self.preprocess = self.net.to(device), self.preprocess.to(device)
        self.rows = None if self.rows is None else self.rows.to(device)

    @torch.no_grad()
    def logits(self, images: Tensor, student: Preprocess) -> Tensor:
        """float32 [B, K] in the student's classes; images: float [B, C, H, W], as `student` has normalised them."""
        if not self.same_normalisation or images.shape[-1] != self.preprocess.image_size:
            # Both are linear, so it does not matter that images were mixed in between.
            images = self.preprocess(images * student.std + student.mean)
        logits: Tensor = self.net(images.contiguous(memory_format=self.memory_format)).float()
        return logits if self.rows is None else logits.index_select(1, self.rows)

    def blend(self, losses: Tensor, logits: Tensor, images: Tensor, student: Preprocess) -> Tensor:
        """(1 - alpha) * losses + alpha * distillation, float32 [B]; losses and logits: the student's, of `images`."""
        learned = distillation(logits, self.logits(images, student), self.temperature)
        return (1 - self.alpha) * losses + self.alpha * learned

    def metadata(self) -> Node:
        """For the checkpoints of the student: which network it was."""
        return {"file": str(self.file), "weights": self.weights}

    def sentence(self) -> str:
        """For the start screen."""
        parameters = sum(parameter.numel() for parameter in self.net.parameters())
        share = f"alpha {self.alpha:g}, temperature {self.temperature:g}"
        return f"{type(self.net).__name__} of {self.file}: {parameters:,} parameters; {share}"


def read_teacher(
    run: RunConfig, classes: Sequence[str], resume: ResumePoint | None = None, record: DataRecord | None = None
) -> Teacher | None:
    """The teacher of a run whose data has these classes; None without one. record: as of `Teacher`.

    CheckpointError where it cannot be read, or is not the one that a resumed run was begun with; DataError where it does not
    know all the classes; ConfigError where its answers cannot be compared with the student's.
    """
    if run.distill.teacher is None:
        return None
    given = f"distill.teacher={run.distill.teacher}"
    try:
        checkpoint = load_checkpoint(run.distill.teacher)
    except ImgrecError as error:
        raise type(error)(f"{given}: {str(error).removeprefix(f'{Path(run.distill.teacher)}: ')}") from error
    check_teacher_classes(run.distill.teacher, checkpoint.classes, classes)
    colours = checkpoint.preprocessing["channels"], run.data.channels
    if colours == (1, 3):
        raise ConfigError(f"{given}: it sees gray images, and data.channels=3. Set data.channels=1, or another teacher.")
    student = build("loss", run.loss, Loss)
    for key, loss in ((given, checkpoint.loss(None)), (f"loss={type(student).__name__}", student)):
        if not is_softmax(loss):
            raise ConfigError(
                f"{key}: the probabilities of {type(loss).__name__} are no softmax of logits, as distilling needs. Set loss=cross_entropy."
            )
    teacher = Teacher(run, checkpoint, [checkpoint.classes.index(name) for name in classes], record)
    if resume is not None and resume.teacher != teacher.weights:
        raise CheckpointError(
            f"{given}: its weights ({teacher.weights[:12]}) are not those with which the run was begun ({str(resume.teacher)[:12]}). "
            "Put that checkpoint back, or set resume=false to start a new run."
        )
    return teacher
