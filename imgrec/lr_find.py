"""Suggest a learning rate: python -m imgrec.lr_find model=resnet optim=adam data=mnist

A range test (Smith 2017, "Cyclical Learning Rates"): a training whose rate rises exponentially from lr_min to lr_max. Its weights are
not kept, and nothing is written but the plot. The steps are the run's own, so augmentation, penalties, layer decay, clipping, precision
and devices count; the schedule does not. Lightning's Tuner.lr_find gives every parameter group the same rate, reads the loss of one
micro-batch, takes the slope over the rate and not over its logarithm, and writes a checkpoint: hence a callback of our own.
"""

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imgrec.config.compose import compose_config
from imgrec.config.instantiate import check_signatures, instantiate
from imgrec.config.schema import RunConfig, run_config
from imgrec.distributed.device_checks import check_accelerator
from imgrec.distributed.process_group import connected_world
from imgrec.distributed.world import world
from imgrec.errors import ConfigError

if TYPE_CHECKING:
    from imgrec.terminal import Terminal


Floats = NDArray[np.float64]

SMOOTH = 0.03  # standard deviation of the smoothing, as a share of all steps
DIVERGED = 4.0  # times the lowest smoothed loss, as in fastai and Lightning
RANGE_TEST_KEYS = ("lr_min", "lr_max", "steps", "plot")
FURTHER = 1000  # factor on the range that an error proposes


@dataclass(frozen=True)
class Curve:
    """Losses of a range test: `losses[i]` is the mean of global batch i, penalties included, before its step at `rates[i]`."""

    rates: Floats  # [steps], all that were planned
    losses: Floats  # [steps done]
    diverged: bool  # did the loss stop it?

    def smoothed(self) -> Floats:
        return smooth_losses(self.losses, width=SMOOTH * len(self.rates))


@dataclass(frozen=True)
class Suggestion:
    """What a curve tells: the rate of the steepest descent, that of the lowest smoothed loss, and how far that fell."""

    lr: float
    lowest: float
    fall: float


def rising_rates(lr_min: float, lr_max: float, steps: int) -> Floats:
    """lr_min * (lr_max / lr_min) ** (i / (steps - 1)) for i = 0 .. steps - 1."""
    return np.asarray(lr_min * (lr_max / lr_min) ** (np.arange(steps) / (steps - 1)), dtype=np.float64)


def smooth_losses(values: Floats, *, width: float) -> Floats:
    """Each value's mean with its neighbours under a Gaussian of standard deviation `width` (in steps).

    Centred: the running average of other range tests lags behind, and so suggests a rate that is too high.
    """
    place = np.arange(len(values))
    weights = np.exp(-0.5 * ((place[:, None] - place) / max(width, 1e-3)) ** 2)
    return np.asarray(weights @ values / weights.sum(1), dtype=np.float64)


def has_diverged(losses: Floats, steps: int) -> bool:
    """Is the smoothed loss above the one at the start and above DIVERGED times the lowest, or the last loss no number?"""
    if not np.isfinite(losses[-1]):
        return True
    curve = smooth_losses(losses, width=SMOOTH * steps)
    return bool(curve[-1] > max(curve[0], DIVERGED * curve.min()))


def suggest_rate(curve: Curve) -> Suggestion | None:
    """The rate before the lowest smoothed loss at which that falls steepest over the logarithm of the rate.

    None where the loss never falls, or by no more than the difference of batches can bring about.
    """
    smoothed = curve.smoothed()
    low = int(smoothed.argmin())
    fall = float(smoothed[0] - smoothed[low])
    if low == 0 or fall <= 4 * _noise(curve):
        return None
    slope = np.gradient(smoothed[: low + 1], np.log(curve.rates[: low + 1]))
    return Suggestion(lr=float(curve.rates[slope.argmin()]), lowest=float(curve.rates[low]), fall=fall)


def _noise(curve: Curve) -> float:
    """Standard deviation of the smoothed loss at an end of the curve, from the differences of neighbours; their median leaves out the
    diverged end."""
    deviation = 1.4826 * float(np.median(np.abs(np.diff(curve.losses)))) / math.sqrt(2)
    averaged = math.sqrt(math.pi) * SMOOTH * len(curve.rates)  # losses that count under half a Gaussian
    return deviation / math.sqrt(max(1.0, averaged))


def range_test(run: RunConfig, rates: Floats, advance: Callable[[], None] = lambda: None) -> tuple[Curve, int, bool]:
    """Trains one step at each rate; returns the curve, the global batch, and whether this is the first rank. Same seed, same curve.

    It runs on the processes that torchrun or SLURM started, else on one device: the global batch is the same on any number of them.
    Rates are values of optim.lr: a step's own rate follows from it as in a training (base_batch, layer decay). Short epochs are followed
    by further ones.
    """
    import pytorch_lightning as pl

    from imgrec.data.datamodule import build_loaders
    from imgrec.training.callbacks.lr_range import LRRange
    from imgrec.training.lightning_compat import silence_known_warnings
    from imgrec.training.module import build_classifier
    from imgrec.training.trainer import build_trainer
    from imgrec.training.transfer import initial_network

    world = connected_world(run.trainer)
    check_signatures(run)
    check_accelerator(run.trainer)
    silence_known_warnings()
    pl.seed_everything(run.seed, workers=True, verbose=False)
    data, augment = instantiate(run.data.to_node()), instantiate(run.augment)
    run = run.with_classes(len(data.classes))
    loaders = build_loaders(run, data, augment, devices=world.size)
    devices = run.trainer.devices
    if world.size == 1:  # one of those that the config names is enough
        devices = devices[:1] if isinstance(devices, list) else 1
    watch = LRRange(rates, lr=run.optim["lr"], diverged=lambda losses: has_diverged(losses, len(rates)), advance=advance)
    trainer = build_trainer(
        replace(run.trainer, devices=devices, limit_val_batches=0),
        loaders.plan,
        world,
        callbacks=[watch],
        logger=False,
        max_steps=len(rates),
        max_epochs=-1,
        enable_checkpointing=False,
    )
    net, _ = initial_network(run, data.classes)
    classifier = build_classifier(run, net, data, augment, loaders.plan, with_schedule=False)
    trainer.fit(classifier, datamodule=loaders)
    losses = np.array(watch.losses)
    return Curve(rates, losses[np.isfinite(losses)], watch.stopped), loaders.plan.global_size, world.rank == 0


def draw_curve(curve: Curve, found: Suggestion, file: Path) -> None:
    """The curve as PNG: loss over rate on a logarithmic axis, with the suggestion and the lowest loss."""
    from matplotlib.figure import Figure

    done, smoothed = curve.rates[: len(curve.losses)], curve.smoothed()
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(done, curve.losses, color="0.75", linewidth=1, label="loss of the batch")
    axes.plot(done, smoothed, color="tab:blue", linewidth=2, label="smoothed")
    at = {rate: float(smoothed[np.abs(done - rate).argmin()]) for rate in (found.lr, found.lowest)}
    axes.axvline(found.lr, color="tab:red", linewidth=1, linestyle="--")
    axes.plot(found.lr, at[found.lr], "o", color="tab:red", markersize=8, label=f"steepest descent: optim.lr={found.lr:.2g}")
    axes.plot(found.lowest, at[found.lowest], "v", color="tab:green", markersize=8, label=f"lowest loss: {found.lowest:.2g}")
    low, high = float(smoothed.min()), float(smoothed[0])  # a diverged end would press the rest flat
    axes.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="loss",
        title="Learning-rate range test",
        ylim=(low - 0.15 * (high - low), high + 0.6 * (high - low)),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(file, format="png")


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """The command: the suggestion in a sentence, the plot, the next command. ConfigError where no rate can be suggested."""
    tree = compose_config("lr_find", argv, config_dir)
    lr_min, lr_max, file = tree["lr_min"], tree["lr_max"], Path(tree["plot"])
    if lr_min >= lr_max:
        raise ConfigError(
            f"lr_min={lr_min:g} lr_max={lr_max:g}: the rate rises from lr_min to lr_max. Set lr_max={lr_min * FURTHER:g}."
        )
    if file.suffix.lower() != ".png" or not file.absolute().parent.is_dir():
        wrong = f"there is no folder {file.parent}" if file.suffix.lower() == ".png" else "the curve is drawn as PNG"
        raise ConfigError(f"plot={file}: {wrong}. Set plot=lr_find.png.")
    from imgrec.terminal import Terminal

    run = run_config(tree)
    screen = Terminal(quiet=world().rank > 0)
    curve, batch, speaks = _with_bar(run, rising_rates(lr_min, lr_max, tree["steps"]), screen)
    if not speaks:
        return 0
    found = suggest_rate(curve)
    if found is None:
        raise ConfigError(_never_fell(curve, lr_min, lr_max))
    draw_curve(curve, found, file)
    end = (
        f"diverged at {curve.rates[len(curve.losses) - 1]:.2g}"
        if curve.diverged
        else f"had not diverged at {curve.rates[len(curve.losses) - 1]:.2g}"
    )
    screen.say(
        f"suggested optim.lr={found.lr:.2g} (steepest descent; the loss was lowest at {found.lowest:.2g} and {end})",
        style="bold green",
    )
    if run.optim.get("base_batch") is not None:
        from imgrec.training.optimizer import rate_sentence

        written = {**run.optim, "lr": float(f"{found.lr:.2g}")}
        screen.say(f"That is the rate to write; the steps then have {rate_sentence(written, batch)}.")
    if found.lowest == curve.rates[-1]:
        screen.say(f"The loss was still falling at lr_max={lr_max:g}: lr_max={lr_max * FURTHER:g} shows where it ends.")
    screen.say(f"curve in {file}")
    screen.say("next:")
    screen.say(f"  {next_command(argv, config_dir, found.lr)}")
    return 0


def _with_bar(run: RunConfig, rates: Floats, screen: "Terminal") -> tuple[Curve, int, bool]:
    screen.say(f"{len(rates)} steps with optim.lr from {rates[0]:g} to {rates[-1]:g}")
    with screen.bar() as bar:
        task = bar.add_task("range test", total=len(rates), note="")
        return range_test(run, rates, lambda: bar.advance(task))


def _never_fell(curve: Curve, lr_min: float, lr_max: float) -> str:
    if not len(curve.losses):
        return f"the loss is not a number at lr_min={lr_min:g}, before any step. Look at the data, or set trainer.precision=32."
    smoothed = curve.smoothed()
    what = f"the loss never fell between optim.lr={lr_min:g} and {curve.rates[len(curve.losses) - 1]:.2g} (it went from {smoothed[0]:.3g} to {smoothed[-1]:.3g}"
    if curve.diverged:
        return f"{what} and diverged). Set lr_min={lr_min / FURTHER:g} lr_max={lr_min:g}."
    return f"{what}). Set lr_max={lr_max * FURTHER:g}, or steps={10 * len(curve.rates)} for a slower rise."


def next_command(argv: Sequence[str], config_dir: str | None, lr: float) -> str:
    """The training with the same choices and the rate."""
    kept = [word for word in argv if word.partition("=")[0].lstrip("+") not in (*RANGE_TEST_KEYS, "optim.lr")]
    folder = ["--config-dir", config_dir] if config_dir else []
    return shlex.join(["python", "-m", "imgrec.train", *folder, *kept, f"optim.lr={lr:.2g}"])


if __name__ == "__main__":
    from imgrec.cli import main as cli

    sys.exit(cli(["lr_find", *sys.argv[1:]]))
