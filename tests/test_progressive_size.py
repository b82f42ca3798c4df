"""callbacks.progressive_size: the side of training images by epoch, what the network sees, and a resumed run."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from error_parts import raises_error
from image_files import picture
from resumed_runs import EVERYTHING, SAMPLES, STEPS_PER_EPOCH, assert_same, finish_run, kill_run
from small_run import SMALL
from test_data_folder import make
from torch import nn

from imgrec import cli, config
from imgrec.config import RunConfig
from imgrec.data.batch import Batch
from imgrec.errors import ConfigError
from imgrec.train import fit
from imgrec.training.callbacks.progressive_size import ProgressiveSize
from imgrec.training.module import Classifier
from imgrec.training.step_boundary import StepBoundary

KEY = "callbacks.progressive_size"
KEYS = tuple(f"{KEY}.{key}" for key in ("first=8", "begin_share=0", "end_share=0.75", "multiple=4"))
RESNET = ("model=resnet", "model.depth=20")


def of_folder(words: Iterable[str], root: Path) -> list[str]:
    """The words of a run on data=fake for a folder."""
    kept = [word for word in words if not word.startswith(("data=", "data.train_samples", "data.test_samples"))]
    return [*kept, "data=imagefolder", f"data.root={root}"]


def test_the_side_is_that_of_a_published_recipe() -> None:
    """FFCV's ResNet-50 of 88 epochs: 160 pixels up to epoch 65, 192 from epoch 76 on, and multiples of 32 between."""
    sides = ProgressiveSize(first=160, last=192, begin_share=65 / 88, end_share=76 / 88, multiple=32)
    assert [sides.side(epoch, 88) for epoch in (0, 65, 70, 71, 76, 87)] == [160, 160, 160, 192, 192, 192]
    finer = ProgressiveSize(first=10, last=32, begin_share=0.25, end_share=0.75, multiple=4)
    assert [finer.side(epoch, 8) for epoch in range(8)] == [10, 10, 10, 16, 20, 28, 32, 32]


def test_files_are_read_at_the_size_of_the_epoch(small: Callable[..., RunConfig], tmp_path: Path) -> None:
    make(tmp_path / "data", dict.fromkeys("abc", 6))
    sides: list[int] = []

    class Sides(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
            sides.append(batch.images.shape[-1])

    words = [*of_folder(SMALL, tmp_path / "data"), *RESNET, *KEYS, "augment=basic", "epochs=4", f"runs_dir={tmp_path / 'runs'}"]
    fit(config.load("train", words), quiet=True, callbacks=Sides())
    assert sides == [8, 8, 12, 12, 12, 12, 16, 16]


def test_training_sees_growing_images_and_validation_the_whole_ones(small: Callable[..., RunConfig]) -> None:
    seen: list[tuple[bool, int]] = []

    class Shapes(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            def note(module: nn.Module, args: tuple[torch.Tensor]) -> None:
                if not trainer.sanity_checking:
                    seen.append((trainer.training, args[0].shape[-1]))

            pl_module.net.register_forward_pre_hook(note)

    fit(small(*RESNET, *KEYS, "epochs=4", "callbacks.batch_norm=null"), quiet=True, callbacks=Shapes())
    assert [side for training, side in seen if training] == [8, 8, 12, 12, 12, 12, 16, 16]
    assert {side for training, side in seen if not training} == {16}


@pytest.mark.slow
@pytest.mark.parametrize("data", ["memory", "files"])
def test_a_run_that_is_killed_while_images_grow_resumes_bit_for_bit(tmp_path: Path, data: str) -> None:
    words = [word for word in EVERYTHING if not word.startswith("model")]
    words += [*RESNET, *KEYS, "trainer.save_every_steps=1", "name=r", "id=a"]
    if data == "files":
        make(tmp_path / "train", dict.fromkeys("abc", SAMPLES // 3 + 3))
        make(tmp_path / "test", dict.fromkeys("abc", 2))
        words = [*of_folder(words, tmp_path), "augment.crop_scale=[0.3,1.0]", "num_workers=2"]
    whole = finish_run(config.load("train", [*words, f"runs_dir={tmp_path}/whole"]))
    parts = config.load("train", [*words, f"runs_dir={tmp_path}/parts"])
    kill_run(parts, STEPS_PER_EPOCH + 2, StepBoundary, "on_before_optimizer_step")
    kill_run(parts, 2, Classifier, "validation_step")
    assert_same(finish_run(parts), whole)


@pytest.mark.slow  # the tests above have its parts
def test_the_recipe_for_imagenet_trains_on_small_images_and_is_tested_with_larger_ones(tmp_path: Path) -> None:
    """As it is, but for the batch: files of the size of ImageNet's, 160 and 256 pixels."""
    for split in ("train", "val"):
        for k, name in enumerate("ab"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                picture(10 * k + i, 500, 375).save(tmp_path / split / name / f"{i}.jpg", quality=92)
    sides: list[tuple[bool, int]] = []

    class Sides(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            pl_module.net.register_forward_pre_hook(lambda net, args: sides.append((net.training, args[0].shape[-1])))

        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
            assert batch.images.shape == (2, 3, 160, 160)

    words = [f"data.root={tmp_path}", "data.num_classes=2", "batch_size=2", "optim.base_batch=null"]
    words += [
        "optim.lr=0.001",
        "epochs=1",
        "num_workers=0",
        "logger=none",
        "callbacks.batch_norm=null",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
    ]
    run = config.load("train", ["experiment=imagenet_resnet50", *words, f"runs_dir={tmp_path / 'runs'}", "name=r", "id=a"])
    fit(run, quiet=True, callbacks=Sides())
    assert [side for training, side in sides if training] == [160, 160]
    assert {side for training, side in sides if not training} >= {256}
    words = [
        f"ckpt={tmp_path}/runs/r/a",
        "data.image_size=288",
        "split=val",
        "num_workers=0",
        "device=cpu",
        f"out={tmp_path}/at_288.json",
    ]
    assert cli.main(["evaluate", *words]) == 0
    assert json.loads((tmp_path / "at_288.json").read_text())["image_size"] == 288


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("first=20",), (f"{KEY}.first=20", "data.image_size=16", f"{KEY}.first=8")),
        (("first=12", "last=8"), (f"{KEY}.first=12 {KEY}.last=8", "data.image_size=16", f"{KEY}.last=0")),
        (("first=8", "begin_share=0.8"), (f"{KEY}.begin_share=0.8 {KEY}.end_share=0.8", f"{KEY}.begin_share=0.3")),
    ],
    ids=str,
)
def test_sizes_that_do_not_grow_are_refused(
    small: Callable[..., RunConfig], words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    keys = [f"{KEY}.{word}" for word in words]
    with raises_error(ConfigError, *parts):
        fit(small(*RESNET, *keys), quiet=True)


def test_a_network_of_one_size_is_refused(small: Callable[..., RunConfig]) -> None:
    with raises_error(ConfigError, f"{KEY}.first=8", "imgrec.models.lenet.LeNet", f"{KEY}.first=0"):
        fit(small(f"{KEY}.first=8"), quiet=True)
