"""No step of a run waits for its device: neither the copy of a batch, nor the loss, metrics, augmentation, optimizer or callbacks.

On CUDA torch raises at a call that would wait. On the CPU a dispatch mode raises where a value is read from a tensor,
which on CUDA is what waits; FiniteLoss alone reads there, as it does not wait for a CPU.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from gpu_run import on
from small_run import SMALL
from test_data_folder import make
from torch.utils._python_dispatch import TorchDispatchMode

import imgrec
from imgrec import config
from imgrec.config.named_values import Fill
from imgrec.config.schema import RunConfig
from imgrec.data import geometry
from imgrec.training.callbacks import finite

WARM_UP = 3  # steps in which constants are copied to the device and kernels are chosen
STEPS = 16  # of an epoch; FiniteLoss looks at a loss 10 steps later
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero", "bincount"}


# What reads counts that are in CPU memory on CUDA too: torch's optimizers, and the average of the weights.
OF_COUNTS = {"_get_value", "update_average"}


class NoReads(TorchDispatchMode):
    """Raises RuntimeError where a value of a tensor is read, except in FiniteLoss and by what has its tensor on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READS:
            frame = sys._getframe()
            while frame is not None and frame.f_code.co_filename != finite.__file__ and frame.f_code.co_name not in OF_COUNTS:
                frame = frame.f_back
            if frame is None:
                raise RuntimeError(f"called a synchronizing operation: {func}")  # torch says "a synchronizing CUDA operation"
        return func(*args, **(kwargs or {}))


class NoWaits(pl.Callback):
    """From the end of step WARM_UP to that of the last but one, whatever waits for the device raises RuntimeError."""

    def __init__(self, device: str) -> None:
        self.device, self.watched = device, 0
        self._reads = NoReads()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM_UP:
            torch.cuda.set_sync_debug_mode("error") if self.device == "cuda" else self._reads.__enter__()
        elif batch_idx == trainer.num_training_batches - 2:
            self.watched = batch_idx - WARM_UP
            self.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.stop()

    def stop(self) -> None:
        torch.cuda.set_sync_debug_mode("default") if self.device == "cuda" else self._reads.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def paths_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU whole pixels are moved by a loop: here as on CUDA."""

    def flip_and_crop(images: torch.Tensor, *moves: torch.Tensor, fill: Fill) -> torch.Tensor:
        return geometry._gather(images, *moves, fill)

    if not torch.cuda.is_available():
        monkeypatch.setattr(geometry, "flip_and_crop", flip_and_crop)


MANY = ("augment.mixup=0.2", "augment.cutmix=1.0", "augment.erase=0.5", "augment.perspective=0.2", "augment.elastic_alpha=20")
CASES = {
    "float32": ("optim=adamw",),
    "bfloat16, clipped": ("trainer.precision=bf16-mixed", "trainer.gradient_clip=1.0", "optim=adamw"),
    "all augmentation, averaged": ("augment=affine", *MANY, "callbacks.ema.decay=0.9", "trainer.precision=bf16-mixed"),
    "micro-batches": ("max_device_batch=4", "augment=light"),
    "a balanced focal loss with penalties": ("loss=focal", "loss.class_weights=balanced", "loss.l1=1e-5", "loss.l2=1e-5"),
    "workers": ("num_workers=2", "augment=basic", "model=resnet"),
    "batch norm, dropout": ("model=simple_cnn", "model.widths=[4,8]", "optim=nesterov"),
}


def words_of(case: str) -> tuple[str, ...]:
    sizes = (
        "batch_size=8",
        "data.train_samples=180",
        f"trainer.limit_train_batches={STEPS}",
        "trainer.log_every_steps=5",
        "logger=csv",
    )
    return (*sizes, *CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits(small: Callable[..., RunConfig], device: str, case: str) -> None:
    waits = NoWaits(device)
    imgrec.fit(small(*words_of(case), *on(device)), quiet=True, callbacks=waits)
    assert waits.watched >= STEPS - 2 - WARM_UP


def test_no_step_of_16_bits_waits_for_its_scaler(small: Callable[..., RunConfig], device: str) -> None:
    """A fused optimizer unscales the gradients and leaves out the step by itself; others have to ask the device."""
    if device == "cpu":
        pytest.skip("imgrec refuses float16 on the CPU")
    waits = NoWaits(device)
    words = (*words_of("float32"), "trainer.precision=16-mixed", *on(device))
    imgrec.fit(small(*words), quiet=True, callbacks=waits)
    assert waits.watched


def test_no_step_with_image_files_waits(device: str, tmp_path: Path) -> None:
    for split, count in (("train", 64), ("val", 4), ("test", 4)):
        make(tmp_path / "photos" / split, {"cat": count, "dog": count})
    waits = NoWaits(device)
    own = ("data.num_classes", "data.train_samples", "data.test_samples", "data=fake")
    words = [word for word in (*SMALL, *words_of("workers"), *on(device)) if not word.startswith(own)]
    run = config.load("train", [f"data={tmp_path}/photos", *words, f"runs_dir={tmp_path}/runs"])
    imgrec.fit(run, quiet=True, callbacks=waits)
    assert waits.watched


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_wait_is_noticed(small: Callable[..., RunConfig], device: str) -> None:
    class Reads(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == WARM_UP + 2:
                outputs["loss"].item()

    with pytest.raises(RuntimeError, match="called a synchronizing"):
        imgrec.fit(small(*words_of("float32"), *on(device)), quiet=True, callbacks=[NoWaits(device), Reads()])
