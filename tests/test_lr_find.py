"""imgrec.lr_find: losses equal to a plain loop of torch, the rule of the suggestion, what it says and writes."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from error_parts import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imgrec import cli
from imgrec.config.instantiate import instantiate
from imgrec.config.load import load_config
from imgrec.config.schema import RunConfig
from imgrec.lr_find import Curve, has_diverged, next_command, range_test, smooth_losses, suggest_rate

DIGITS = [
    "data=digits", "augment=none", "model=simple_cnn", "model.widths=[4]", "model.dense=16", "model.dense_dropout=0", "optim=sgd", "logger=none",
    "trainer.accelerator=cpu", "trainer.devices=1", "num_workers=0",
]  # fmt: skip


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.5, 4))
def test_smoothing_keeps_a_straight_line_away_from_its_ends(start: float, slope: float, width: float) -> None:
    line = start + slope * np.arange(101.0)
    smoothed = smooth_losses(line, width=width)
    np.testing.assert_allclose(smoothed[40:61], line[40:61], atol=1e-9)


@pytest.mark.parametrize("turn", [1e-4, 1e-3, 1e-2])
def test_the_suggestion_is_where_a_logistic_fall_is_steepest(turn: float) -> None:
    rates = np.geomspace(1e-6, 1.0, 241)
    losses = 2.3 / (1 + (rates / turn) ** 1.5)  # in log(rate) a logistic curve: steepest at `turn`
    found = suggest_rate(Curve(rates, losses, diverged=False))
    assert found is not None
    assert abs(math.log10(found.lr / turn)) <= 6 / 240 + 1e-9  # one step of the grid
    assert found.lowest == rates[-1]


def test_of_an_even_fall_the_suggestion_is_near_its_end_whatever_the_noise() -> None:
    """From 1e-6 to 1e-2, as LeNet falls on MNIST."""
    rates, draw = np.geomspace(1e-6, 1.0, 100), np.random.default_rng(0)
    fall = 1.5 + 3.5 * np.clip(np.log10(rates / 1e-2) / -4, 0, None)
    found = [suggest_rate(Curve(rates, fall + draw.normal(0, 0.2, 100), diverged=False)) for _ in range(200)]
    decades = [math.log10(one.lr) for one in found if one is not None]
    assert len(decades) == 200
    assert -3.5 < min(decades) < max(decades) < -1.5


@pytest.mark.parametrize("steps", [2, 10, 100, 1000])
def test_two_losses_are_too_few(steps: int) -> None:
    """As many as a range test has that diverges at once: they differ by no more than the noise of the batches."""
    assert suggest_rate(Curve(np.geomspace(1e-3, 1.0, steps), np.array([2.0, 1.0]), diverged=True)) is None


def test_gradient_descent_on_a_quadratic_turns_where_theory_says() -> None:
    # loss = curvature/2 w^2: a step multiplies it by (1 - rate * curvature)^2, so it falls up to rate = 2 / curvature and rises from there on.
    curvature, rates = 9.0, np.geomspace(1e-2, 100.0, 81)
    factors = (1 - rates * curvature) ** 2
    losses = np.concatenate([[1.0], np.cumprod(factors)[:-1]])
    stop = int(np.argmax(losses > 4.0))
    curve = Curve(rates, losses[: stop + 1], diverged=True)
    found = suggest_rate(curve)
    assert found is not None
    assert rates[losses[:stop].argmin()] == pytest.approx(2 / curvature, rel=0.1)  # a step of the grid
    assert found.lr < 2 / curvature
    assert next(i for i in range(1, len(losses)) if has_diverged(losses[: i + 1], len(rates))) == pytest.approx(stop, abs=1)


def test_a_loss_that_is_no_number_or_far_above_both_its_start_and_lowest_has_diverged() -> None:
    assert has_diverged(np.array([1.0, math.nan]), 10)
    assert has_diverged(np.array([1.0, 0.2, 1.5]), 10)
    assert not has_diverged(np.array([1.0, 0.2, 0.9]), 10)  # 4.5 times the lowest, but below the start
    assert not has_diverged(np.array([1.0, 0.9, 1.5]), 10)


@pytest.mark.parametrize("steps", [30, 100, 400])
def test_noise_is_no_fall(steps: int) -> None:
    draw = np.random.default_rng(0)
    taken = [
        suggest_rate(Curve(np.geomspace(1e-6, 1.0, steps), draw.normal(2.3, 0.1, steps), diverged=False)) for _ in range(200)
    ]
    assert sum(found is not None for found in taken) <= 4


def plain_losses(run: RunConfig, rates: np.ndarray, share: Callable[[str], float] = lambda name: 1.0) -> list[float]:
    """The same test as a loop of torch: whole global batches in the run's order, plain SGD with a rate of each parameter."""
    import pytorch_lightning as pl

    from imgrec.data.datamodule import DataModule
    from imgrec.data.preprocess import Preprocess

    pl.seed_everything(run.seed, verbose=False)
    data = instantiate(run.data.to_node())
    loaders = DataModule(replace(run, max_device_batch=10**6, num_workers=0), data, None, devices=1)
    net = instantiate(run.model, num_classes=len(data.classes))
    preprocess = Preprocess(
        image_size=run.data.image_size, mean=run.data.mean, std=run.data.std, interpolation=run.data.interpolation
    )
    losses: list[float] = []
    epoch = 0
    while len(losses) < len(rates):
        loaders._epoch = lambda epoch=epoch: epoch
        for batch in loaders.train_dataloader():
            loss = F.cross_entropy(net(preprocess(batch.images)), batch.labels)
            losses.append(loss.item())
            if len(losses) == len(rates):
                return losses
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for (name, parameter), gradient in zip(net.named_parameters(), gradients, strict=True):
                    parameter.sub_(float(rates[len(losses) - 1]) * share(name) * gradient)
        epoch += 1
    return losses


@pytest.mark.parametrize("extra", [[], ["max_device_batch=100"]], ids=["whole batches", "accumulated"])
def test_losses_equal_a_plain_loop_of_torch_over_several_epochs(extra: list[str]) -> None:
    run = load_config("train", [*DIGITS, "batch_size=400", "model.norm=none", *extra])  # 4 batches an epoch
    rates = np.geomspace(1e-3, 0.1, 10)
    curve, batch, is_first = range_test(run, rates)
    assert (batch, is_first) == (400, True)
    assert not curve.diverged
    np.testing.assert_allclose(curve.losses, plain_losses(run, rates), rtol=1e-4)
    assert np.ptp(curve.losses) > 0.05


def test_parameter_groups_keep_their_share_of_the_rate() -> None:
    from imgrec.models.layers import layers

    run = load_config("train", [*DIGITS, "batch_size=400", "model.norm=none", "finetune.layer_decay=0.5"])
    found = layers(instantiate(run.model, num_classes=10), 10)
    place = {name: index for index, names in enumerate(found) for name in names}
    rates = np.geomspace(1e-2, 1.0, 8)
    expected = plain_losses(run, rates, lambda name: 0.5 ** (len(found) - 1 - place[name]))
    np.testing.assert_allclose(range_test(run, rates)[0].losses, expected, rtol=1e-4)
    assert not np.allclose(expected, plain_losses(run, rates), rtol=1e-3)


def test_rates_are_written_ones_and_the_steps_have_those_of_their_batch() -> None:
    plain, scaled = (load_config("train", [*DIGITS, "batch_size=400", *words]) for words in ([], ["optim.base_batch=100"]))
    expected = range_test(plain, 4 * np.geomspace(1e-3, 0.1, 8))[0].losses
    np.testing.assert_array_equal(range_test(scaled, np.geomspace(1e-3, 0.1, 8))[0].losses, expected)


@pytest.mark.slow
def test_command_says_the_rate_and_writes_nothing_but_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*DIGITS, "lr_min=1e-4", "lr_max=1000", "steps=60", "plot=curve.png", "optim.lr=0.3"]
    said = []
    for _ in range(2):
        assert cli.main(["lr_find", *words]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]  # the seed decides
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
    with Image.open("curve.png") as image:
        assert image.size == (960, 540)
    rate = said[0].partition("suggested optim.lr=")[2].split()[0]
    assert 1e-4 < float(rate) < 1000
    assert "diverged at " in said[0]
    assert (
        said[0].splitlines()[-1].strip() == f"imgrec train {' '.join(repr(w) if '[' in w else w for w in DIGITS)} optim.lr={rate}"
    )


def test_the_suggestion_is_what_to_write_and_the_rate_of_the_steps_stands_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*DIGITS, "lr_min=1e-4", "lr_max=10", "steps=30", f"plot={tmp_path}/curve.png", "optim.base_batch=16"]
    assert cli.main(["lr_find", *words]) == 0
    said = capsys.readouterr().out
    found = float(said.partition("suggested optim.lr=")[2].split()[0])
    used, _, rest = said.partition("the steps have lr ")[2].partition(" = ")
    assert float(used) == pytest.approx(4 * found)
    assert rest.startswith(f"{found:g} x 64/16 (linear in the global batch).")
    assert f"optim.lr={found:.2g}" in said.splitlines()[-1]


def test_next_command_keeps_the_choices() -> None:
    assert next_command(["data=mnist", "lr_max=3", "optim.lr=1", "plot=a.png"], "my conf", 0.00321) == (
        "imgrec train --config-dir 'my conf' data=mnist optim.lr=0.0032"
    )


def test_a_loss_that_never_falls_is_an_error_with_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "never.png"
    assert cli.main(["lr_find", *DIGITS, "lr_min=1e-12", "lr_max=1e-11", "steps=12", f"plot={plot}"]) == 2
    assert_refused(capsys.readouterr().err, "the loss never fell", "optim.lr=1e-12", "1e-11", "lr_max=1e-08", "steps=120")
    assert cli.main(["lr_find", *DIGITS, "model.norm=none", "lr_min=1e4", "lr_max=1e5", "steps=12", f"plot={plot}"]) == 2
    assert_refused(capsys.readouterr().err, "the loss never fell", "diverged", "lr_min=10 lr_max=10000")
    assert not plot.exists()
