"""What all tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from imgrec import config

# A busy machine is no fault of the code: pytest's --durations shows what is slow.
settings.register_profile("imgrec", deadline=None)
settings.load_profile("imgrec")

# The least that goes through every part of a run: two steps, one batch of validation and of test, on the CPU.
SMALL = (
    "data=fake",
    "data.num_classes=3",
    "data.image_size=16",
    "data.train_samples=24",
    "data.test_samples=6",
    "model=lenet",
    "optim=sgd",
    "optim.lr=0.01",
    "epochs=1",
    "batch_size=4",
    "num_workers=0",
    "logger=none",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
)


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., config.RunConfig]:
    """small("epochs=2", ...) is the config of a run of a second, in tmp_path/runs."""
    return lambda *words: config.load("train", [*SMALL, f"runs_dir={tmp_path}/runs", *words])
