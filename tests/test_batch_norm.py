"""The statistics of batch norm that validations of the first steps use."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from marks import slow_but
from torch import Tensor, nn
from torch.testing import assert_close

from imgrec import evaluate
from imgrec.config.schema import RunConfig
from imgrec.models.resnet import resnet
from imgrec.train import fit
from imgrec.training.callbacks.batch_norm import measure_statistics, trained_norms


def test_they_are_the_means_of_those_of_the_batches() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, momentum=0.3)).eval()
    batches = torch.randn(4, 8, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    measure_statistics(trained_norms(net), net, batches)
    assert_close(net[0].running_mean, batches.mean((0, 1, 3, 4)))
    assert_close(net[0].running_var, torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0))
    inner = torch.stack([net[2](F.batch_norm(batch, None, None, net[0].weight, net[0].bias, training=True)) for batch in batches])
    assert_close(net[3].running_mean, inner.mean((0, 1, 3, 4)))
    assert_close(net[3].running_var, torch.stack([batch.var((0, 2, 3)) for batch in inner]).mean(0))
    assert not any(module.training for module in net.modules())
    assert [net[0].momentum, net[3].momentum] == [0.1, 0.3]
    assert [net[0].num_batches_tracked.item(), net[3].num_batches_tracked.item()] == [0, 0]


def test_frozen_ones_and_exact_means_are_left_alone() -> None:
    net = nn.Sequential(
        nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3)
    )
    net[0].requires_grad_(requires_grad=False)
    assert trained_norms(net) == [net[3]]


@pytest.mark.parametrize("seed", slow_but(among=[1, 2]))
def test_the_loss_after_the_first_steps_is_that_of_the_training(seed: int) -> None:
    torch.manual_seed(seed)
    net = resnet(num_classes=4, channels=3, depth=18, stem="imagenet", zero_init_residual=False)
    colours, optimizer = torch.randn(4, 3, 8, 8), torch.optim.Adam(net.parameters(), 0.003)

    def draw() -> tuple[Tensor, Tensor]:
        labels = torch.randint(4, (32,))
        return F.interpolate(colours[labels] + 0.5 * torch.randn(32, 3, 8, 8), size=(32, 32)), labels

    for _ in range(5):
        images, labels = draw()
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels = draw()
    with torch.no_grad():
        training = F.cross_entropy(net(images), labels)
        averaged = F.cross_entropy(net.eval()(images), labels)
        measure_statistics(trained_norms(net), net, [draw()[0] for _ in range(4)])
        measured = F.cross_entropy(net(images), labels)
    assert averaged > training + 2
    assert measured < training + 0.5


@pytest.mark.parametrize(("epochs", "decay"), slow_but((1, 0.9), among=[(1, 0.0), (1, 0.9), (3, 0.9)]))
def test_the_best_checkpoint_has_the_ones_that_it_was_validated_with(
    small: Callable[..., RunConfig], epochs: int, decay: float
) -> None:
    """Also those of the averaged weights. Another evaluation than the training's own has the same loss."""
    keys = ("model=simple_cnn", "optim.lr=0.1", "monitor=val/loss", "trainer.limit_val_batches=1.0")
    run = small(*keys, f"epochs={epochs}", f"callbacks.ema.decay={decay}", "id=1")
    fit(run, quiet=True)
    folder = Path(run.runs_dir) / run.name / "1"
    with (folder / "metrics.csv").open() as file:
        best = [row for row in csv.DictReader(file) if row["best"] == "1"][-1]
    assert evaluate.main([str(folder), "split=val", "device=cpu"]) == 0
    assert json.loads((folder / "evaluate_val.json").read_text())["figures"]["loss"] == pytest.approx(
        float(best["val/loss"]), rel=1e-5
    )
