"""callbacks.progressive_size: the side of training images by epoch, what the network sees, and a resumed run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from error_parts import raises_error
from resumed_runs import EVERYTHING, STEPS_PER_EPOCH, assert_same, finish_run, kill_run
from torch import nn

from imgrec import config
from imgrec.config import RunConfig
from imgrec.errors import ConfigError
from imgrec.train import fit
from imgrec.training.callbacks.progressive_size import ProgressiveSize
from imgrec.training.module import Classifier
from imgrec.training.step_boundary import StepBoundary

KEY = "callbacks.progressive_size"
KEYS = tuple(f"{KEY}.{key}" for key in ("first=8", "begin_share=0", "end_share=0.75", "multiple=4"))
RESNET = ("model=resnet", "model.depth=20")


def test_the_side_is_that_of_a_published_recipe() -> None:
    """FFCV's ResNet-50 of 88 epochs: 160 pixels up to epoch 65, 192 from epoch 76 on, and multiples of 32 between."""
    sides = ProgressiveSize(first=160, last=192, begin_share=65 / 88, end_share=76 / 88, multiple=32)
    assert [sides.side(epoch, 88) for epoch in (0, 65, 70, 71, 76, 87)] == [160, 160, 160, 192, 192, 192]
    finer = ProgressiveSize(first=10, last=32, begin_share=0.25, end_share=0.75, multiple=4)
    assert [finer.side(epoch, 8) for epoch in range(8)] == [10, 10, 10, 16, 20, 28, 32, 32]


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
def test_a_run_that_is_killed_while_images_grow_resumes_bit_for_bit(tmp_path: Path) -> None:
    words = [word for word in EVERYTHING if not word.startswith("model")]
    words += [*RESNET, *KEYS, "trainer.save_every_steps=1", "name=r", "id=a"]
    whole = finish_run(config.load("train", [*words, f"runs_dir={tmp_path}/whole"]))
    parts = config.load("train", [*words, f"runs_dir={tmp_path}/parts"])
    kill_run(parts, STEPS_PER_EPOCH + 2, StepBoundary, "on_before_optimizer_step")
    kill_run(parts, 2, Classifier, "validation_step")
    assert_same(finish_run(parts), whole)


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
