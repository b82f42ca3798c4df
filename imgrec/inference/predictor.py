"""Prediction with a trained network, from a checkpoint alone; nothing is downloaded. `imgrec.load` returns a Predictor."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, distributed

from imgrec.config.annotations import check_type
from imgrec.config.schema import Device, Node, Precision, SetMethod, Split, Views
from imgrec.data.file_index import pack_names
from imgrec.data.loader import Loader, worker_count
from imgrec.data.picture import describe_picture
from imgrec.data.preprocess import Preprocess
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.distributed.world import read_world
from imgrec.errors import CheckpointError, ConfigError, DataError, first_line, first_names
from imgrec.inference.arguments import BATCH_SIZE, Picture, check_count, check_workers, listed_pictures, picture_batches
from imgrec.inference.checkpoint import Checkpoint, load_checkpoint
from imgrec.inference.device import Halving, check_memory, choose_device, inference, is_out_of_memory
from imgrec.inference.evaluation import evaluation_images
from imgrec.inference.file_batches import FileBatches
from imgrec.inference.guarantee import Guarantee, find_guarantee
from imgrec.inference.measure import measure_images
from imgrec.inference.metrics import Report
from imgrec.inference.tta import preprocessing_for, read_as
from imgrec.models.layers import head_names, inputs_of
from imgrec.models.views import image_views, mean_logits

FEW_FILES = 256  # up to so many are read without worker processes, which take seconds to start


@dataclass(frozen=True)
class Prediction:
    """The most probable class of an image; `top` has the first top_k with their probabilities, the highest first.

    classes: with coverage=, the set that holds the right class, the most probable first; it may be empty. answered: with
    risk=, whether the class may be answered.
    """

    class_name: str
    probability: float
    top: list[tuple[str, float]]
    classes: list[str] | None = None
    answered: bool = True


class Predictor:
    """A network, `model`, with its classes and preprocessing, on a device.

    precision: None is the run's; 16-mixed is bf16-mixed off CUDA, as in training. Raises ConfigError for a device that is not
    available, CheckpointError for weights that do not fit their config. calibrated: divide the logits by the temperature that was
    fitted at the end of the training, where there is one. tta: the logits are the mean over several views. max_pixels: None is the run's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: Device = "auto",
        precision: Precision | None = None,
        calibrated: bool = True,
        tta: Views | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.classes = checkpoint.classes
        self.tta, self.side = tta, checkpoint.preprocessing["image_size"]
        self.preprocessing = preprocessing_for(checkpoint, tta)  # how images are read; crops of `side` pixels are cut from them
        if max_pixels is not None:
            self.preprocessing = {**self.preprocessing, "max_pixels": max_pixels}
        check_type("calibrated", calibrated, bool)
        self.calibrated = calibrated
        fitted = checkpoint.calibration if calibrated else None
        self.temperature = 1.0 if fitted is None else fitted.temperature
        self.device = choose_device(str(device))
        check_type("precision", precision, Precision | None)
        trained = checkpoint.run.trainer.precision
        self.precision: Precision = precision or ("32" if trained == "auto" else trained)  # a run stores what "auto" chose
        if self.precision == "16-mixed" and self.device.type != "cuda":
            self.precision = "bf16-mixed"
        self.memory_format = torch.channels_last if checkpoint.run.trainer.channels_last else torch.contiguous_format
        steps = self.preprocessing
        self.preprocess_batch = Preprocess(
            image_size=steps["image_size"], mean=steps["mean"], std=steps["std"], interpolation=steps["interpolation"]
        ).to(self.device)
        # In this process alone: the caller's random numbers stay as they are.
        with torch.random.fork_rng(devices=[]):
            self.model = checkpoint.network().to(memory_format=self.memory_format).to(self.device).eval()
        self.loss = checkpoint.loss(None).to(self.device)
        self.halving = Halving()

    def __repr__(self) -> str:
        size, channels = self.preprocessing["image_size"], self.preprocessing["channels"]
        return (
            f"<imgrec.Predictor of {self.checkpoint.file}: {type(self.model).__name__}, {len(self.classes)} classes "
            f"({first_names(self.classes, 3)}), images of {size}x{size}x{channels}, on {self.device}>"
        )

    def logits(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float32 [B, K] on the device; to be called inside `inference`. In parts where the memory is too small."""
        return self.halving(self._logits, images)

    def _logits(self, images: Tensor) -> Tensor:
        pixels = self.preprocess_batch(images.to(self.device))
        return mean_logits(self._view_logits, image_views(pixels, self.tta, self.side))

    def _view_logits(self, pixels: Tensor) -> Tensor:
        """Float [B, C, S, S] -> float32 [B, K]."""
        pixels = pixels.contiguous(memory_format=self.memory_format)
        try:
            logits: Tensor = self.model(pixels)
        except (RuntimeError, ValueError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"{self.checkpoint.file}: its network takes no images {list(pixels.shape)}: {first_line(error)}. Name another."
            ) from error
        if logits.shape != (len(pixels), len(self.classes)):
            raise CheckpointError(
                f"{self.checkpoint.file}: its network answers {list(logits.shape)} for {len(pixels)} images and "
                f"{len(self.classes)} classes. Name another."
            )
        return logits.float()

    def preprocess(self, images: Picture | Sequence[Picture]) -> Tensor:
        """float32 [N, C, S, S] on the device, as `model` takes it, all at once; `images` as in `predict`.

        With tta=crops or ten_crops S is the side of the square from which the crops are cut.
        """
        batches = picture_batches(images, self.preprocessing, BATCH_SIZE)
        parts = [self.preprocess_batch(batch.to(self.device)) for batch in batches]
        return torch.cat(parts).contiguous(memory_format=self.memory_format) if parts else torch.empty(0, 0, 0, 0)

    def probabilities(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W], C as the network was trained on, any H and W (squashed) -> float32 [B, K] on the CPU."""
        channels = self.preprocessing["channels"]
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != channels:
            raise DataError(
                f"images are {describe_picture(images)}; probabilities takes uint8 [B, {channels}, H, W]. "
                "`predict` takes single images too, and converts channels."
            )
        if not len(images):
            return torch.empty(0, len(self.classes))
        with inference(self.device, self.precision):
            answer = self.loss.probabilities(self.logits(images) / self.temperature).float().cpu()
        if answer.isnan().any():
            hint = "Train again" if self.precision == "32" else "Set precision=32, or train again"
            raise CheckpointError(f"{self.checkpoint.file}: the network's answer is not a number. {hint} with a lower optim.lr.")
        return answer

    def predict(
        self,
        images: Picture | Sequence[Picture],
        *,
        top_k: int = 1,
        batch_size: int = BATCH_SIZE,
        coverage: float | None = None,
        sets: SetMethod = "lac",
        sets_by_class: bool = False,
        risk: float | None = None,
    ) -> list[Prediction]:
        """One Prediction an image, in the order of `images`.

        images: one or a sequence of paths, PIL images, uint8 arrays [H, W] or [H, W, C], uint8 tensors [C, H, W]; or one uint8
        array [B, H, W, C] or [B, H, W], or tensor [B, C, H, W]. Gray and colour are converted, sizes fitted as in evaluation.
        coverage, sets, sets_by_class, risk: as in conf/predict.yaml; ConfigError where the validation images cannot guarantee it.
        DataError for what cannot be read.
        """
        guarantee = find_guarantee(
            self.checkpoint,
            coverage=coverage,
            risk=risk,
            sets=sets,
            sets_by_class=sets_by_class,
            calibrated=self.calibrated,
            tta=self.tta,
        )
        batches = picture_batches(images, self.preprocessing, batch_size)
        return [prediction for batch in batches for prediction in self.answer(batch, top_k, guarantee)]

    def embed(self, images: Picture | Sequence[Picture], *, batch_size: int = BATCH_SIZE) -> Tensor:
        """float32 [N, D] on the CPU: what the network's last layer, its head, gets for each image. `images` as in `predict`.

        Of a map, as before a convolution, the mean over its pixels. CheckpointError for a network without a head.
        """
        try:
            head = self.model.get_submodule(head_names(self.model, len(self.classes))[-1])
        except ConfigError as error:
            raise CheckpointError(f"{self.checkpoint.file}: {first_line(error).partition('.')[0]}. Name another.") from error
        parts: list[Tensor] = []

        def features(batch: Tensor) -> Tensor:
            kept.clear()
            self._logits(batch)
            means = torch.stack(kept).mean(dim=0)  # of the views
            return (means.mean((2, 3)) if means.ndim == 4 else means.flatten(1)).float().cpu()

        with inputs_of(head) as kept:
            for batch in picture_batches(images, self.preprocessing, batch_size):
                with inference(self.device, self.precision):
                    parts.append(self.halving(features, batch))
        return torch.cat(parts) if parts else torch.empty(0, 0)

    def predict_files(
        self,
        paths: Sequence[str],
        *,
        top_k: int = 1,
        batch_size: int = BATCH_SIZE,
        num_workers: int | Literal["auto"] = "auto",
        timeout_s: float | None = None,
        guarantee: Guarantee | None = None,
    ) -> Iterator[Prediction | DataError]:
        """Like `predict`, with worker processes that read the files; a file that cannot be read gives a DataError instead of a Prediction.

        timeout_s: raise Died when they deliver nothing for that long.
        """
        paths = cast(Sequence[str], listed_pictures(paths))
        check_count("batch_size", batch_size)
        check_workers(num_workers)
        check_memory(min(batch_size, len(paths)), self.preprocessing)
        few = len(paths) <= FEW_FILES
        num_workers = worker_count(num_workers, in_memory=few, processes_here=read_world().local_size)
        batches = [range(start, min(start + batch_size, len(paths))) for start in range(0, len(paths), batch_size)]
        files, on_gpu = FileBatches(pack_names(paths), self.preprocessing), self.device.type == "cuda"
        with closing(Loader(files, batches, num_workers=num_workers, timeout_s=timeout_s, for_gpu=on_gpu)) as loader:
            for batch in loader:
                predictions = iter(self.answer(batch.images, top_k, guarantee))
                for error in batch.errors:
                    yield next(predictions) if error is None else DataError(error)

    def answer(self, images: Tensor, top_k: int, guarantee: Guarantee | None = None) -> list[Prediction]:
        """uint8 [B, C, S, S] as it was read with `preprocessing` -> one Prediction an image."""
        probabilities = self.probabilities(images)
        predictions = self.ranked(probabilities, top_k)
        if guarantee is None:
            return predictions
        if guarantee.threshold is not None:
            return [replace(each, answered=each.probability > guarantee.threshold) for each in predictions]
        sets = guarantee.class_sets(images, probabilities)
        names = ([self.classes[label] for label in labels] for labels in sets)
        return [replace(each, classes=own) for each, own in zip(predictions, names, strict=True)]

    def ranked(self, probabilities: Tensor, top_k: int) -> list[Prediction]:
        """float [B, K] -> the top_k classes of each row; of equal ones the first in the class list, as argmax chooses."""
        check_count("top_k", top_k)
        best = probabilities.sort(dim=1, descending=True, stable=True)
        predictions = []
        for values, labels in zip(best.values[:, :top_k].tolist(), best.indices[:, :top_k].tolist(), strict=True):
            top = [(self.classes[label], value) for value, label in zip(values, labels, strict=True)]
            predictions.append(Prediction(*top[0], top))
        return predictions

    def evaluate(
        self,
        split: Split = "test",
        *,
        folder: str | None = None,
        data: Node | None = None,
        batch_size: int | None = None,
        num_workers: int | Literal["auto"] = "auto",
    ) -> Report:
        """The report on a split of the stored data set, or on FOLDER/CLASS/*; `data` holds keys that have changed: {"root": ...}.

        Where torch.distributed is initialised each process measures its share, so all must call it; each gets the report of the whole.
        """
        if batch_size is not None:
            check_count("batch_size", batch_size)
        check_workers(num_workers)
        check_type("data", data, dict | None)
        found = evaluation_images(self.checkpoint, split=split, folder=folder, changes=data or {})
        connected = distributed.is_available() and distributed.is_initialized()
        group = WorkerGroup(distributed.get_rank(), distributed.get_world_size()) if connected else WorkerGroup()
        return measure_images(
            self,
            read_as(found.images, self.preprocessing),
            found.counts,
            batch_size=batch_size,
            num_workers=num_workers,
            group=group,
        ).report


def load(
    path: str | os.PathLike[str], *, device: Device = "auto", calibrated: bool = True, tta: Views | None = None
) -> Predictor:
    """The predictor of a checkpoint or run directory: `imgrec.load("runs/mnist_resnet/1").predict("seven.png")`.

    calibrated=False: probabilities without the temperature that was fitted on the validation images. tta: as in conf/predict.yaml.

    Raises CheckpointError for a file that is not a whole checkpoint of imgrec.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"path={path!r}: expected the path of a checkpoint or run directory. Type imgrec.load('runs/NAME/ID').")
    return Predictor(load_checkpoint(Path(path)), device=device, calibrated=calibrated, tta=tta)
