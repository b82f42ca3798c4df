"""train/step_loss and the loss beside the bar: the mean over the global batch, however it is divided into devices and micro-batches."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from marks import slow_but
from processes import run_ranks
from rich.console import Console
from test_train import WHOLE, start

from imgrec.config.schema import RunConfig
from imgrec.train import fit
from imgrec.training.callbacks import console
from imgrec.training.callbacks.steps import STEP_FIGURES

# 21 images after the validation cut: the third batch has 5.
KEYS = ("batch_size=8", "epochs=2", "augment=none", "loss.l2=0.01", "logger=csv", "trainer.log_every_steps=1", "id=a", *WHOLE)


def step_figures(run: RunConfig, devices: int = 1) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    run_ranks(devices, lambda rank: fit(run, quiet=True)["status"])
    with (Path(run.runs_dir) / run.name / "a/csv/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/step_loss")]
    return {name: [float(row[name]) for row in rows] for name in STEP_FIGURES}


@pytest.fixture(scope="module")
def undivided(tmp_path_factory) -> dict[str, list[float]]:
    from small_run import SMALL

    from imgrec import config

    figures = step_figures(config.load("train", [*SMALL, *KEYS, f"runs_dir={tmp_path_factory.mktemp('undivided')}"]))
    assert len(figures["train/step_loss"]) == 2 * 3
    return figures


@pytest.mark.parametrize(("devices", "most"), slow_but((2, 2), among=[(1, 1), (1, 3), (2, 4), (2, 2), (2, 1), (4, 1)]))
def test_a_step_has_one_loss_and_the_same_norms_on_any_devices_and_in_any_parts(
    small: Callable[..., RunConfig], undivided: dict[str, list[float]], devices: int, most: int
) -> None:
    found = step_figures(small(*KEYS, f"max_device_batch={most}", "trainer.devices=auto"), devices)
    for name in STEP_FIGURES:
        assert found[name] == pytest.approx(undivided[name], rel=1e-3), name


@pytest.mark.slow
def test_sharded_weights_have_the_norms_of_whole_ones(small: Callable[..., RunConfig]) -> None:
    keys = (*KEYS, "loss.l2=0", "trainer.devices=auto")
    whole, sharded = (step_figures(small(*keys, f"trainer.strategy={name}", f"name={name}"), 2) for name in ("ddp", "fsdp"))
    for name in STEP_FIGURES:
        assert sharded[name] == pytest.approx(whole[name], rel=1e-4), name


def test_the_first_is_the_mean_over_the_batch_with_its_penalty(small: Callable[..., RunConfig]) -> None:
    run = small(*KEYS, "batch_size=full", "epochs=1", "max_device_batch=4")
    (found,) = step_figures(run)["train/step_loss"]
    net, images, labels = start(run)
    penalty = sum(parameter.square().sum() for parameter in net.parameters() if parameter.ndim >= 2)
    assert found == pytest.approx((F.cross_entropy(net(images), labels) + 0.01 * penalty).item(), rel=1e-5)


def test_the_bar_shows_it(
    small: Callable[..., RunConfig], undivided: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    class Recorded(console.EpochLines):
        def on_train_start(self, trainer, pl_module):
            self.terminal.console = Console(file=io.StringIO(), force_terminal=True)
            self._progress = self.terminal.bar()
            self._progress.update = lambda task, note, **fields: shown.append(note)
            super().on_train_start(trainer, pl_module)

    monkeypatch.setattr(console, "EVERY_SECONDS", 1e-9)
    monkeypatch.setattr(console, "EpochLines", Recorded)
    fit(small(*KEYS, "max_device_batch=2"), quiet=True)
    assert list(dict.fromkeys(shown)) == [f"loss {loss:.4f}" for loss in undivided["train/step_loss"]]
