"""Suggest a learning rate: python -m imgrec.lr_find model=resnet optim=adam data=mnist

A range test (Smith 2017, "Cyclical Learning Rates"): a training whose learning rate rises exponentially from lr_min to
lr_max. It writes the plot and no checkpoint. Its steps are those of the run, with augmentation, penalties, layer decay,
clipping, precision and devices, but without the schedule. Lightning's Tuner.lr_find sets the same rate for every
parameter group, reads the loss of one micro-batch, takes the slope over the rate and not over its logarithm, and writes
a checkpoint: hence our own callback.
"""

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imgrec.config.load import compose_run
from imgrec.config.schema import RunConfig, run_config
from imgrec.config.start_checks import check_start
from imgrec.distributed.command import run_command
from imgrec.distributed.process_group import connected_world, on_first_rank
from imgrec.distributed.world import read_world
from imgrec.errors import ConfigError
from imgrec.files import atomic_write, check_output, is_our_png
from imgrec.inference.drawing import png_bytes
from imgrec.terminal import Terminal
from imgrec.training.batch_choice import with_chosen_batch
from imgrec.training.out_of_memory import refused_where_memory_ends
from imgrec.training.precision import chosen_precision

Floats = NDArray[np.float64]

SMOOTH = 0.03  # standard deviation of the smoothing, as a share of all steps
DIVERGED = 4.0  # times the lowest smoothed loss, as in fastai and Lightning
RANGE_TEST_KEYS = ("lr_min", "lr_max", "steps", "plot", "overwrite")
NEAR_LOWEST = 0.1  # share of the fall that is still to come, below which noise looks like a descent
FURTHER = 1000  # factor on the range that an error suggests


@dataclass(frozen=True)
class Curve:
    """A range test: `losses[i]` is the mean over global batch i, with penalties, before the step at `rates[i]`."""

    rates: Floats  # [steps]
    losses: Floats  # [steps done]
    diverged: bool  # whether it stopped early because of the loss

    def smoothed(self) -> Floats:
        return smooth_losses(self.losses, width=SMOOTH * len(self.rates))


@dataclass(frozen=True)
class Suggestion:
    """The highest learning rate with a steep descent, and that of the lowest smoothed loss of a curve."""

    lr: float
    lowest: float


def smooth_losses(values: Floats, *, width: float) -> Floats:
    """Each value averaged with its neighbours under a Gaussian of standard deviation `width` (in steps).

    Centred: the running average of other range tests lags behind, and so suggests a rate that is too high.
    """
    index = np.arange(len(values))
    weights = np.exp(-0.5 * ((index[:, None] - index) / max(width, 1e-3)) ** 2)
    return np.asarray(weights @ values / weights.sum(1), dtype=np.float64)


def has_diverged(losses: Floats, steps: int) -> bool:
    """Whether the smoothed loss exceeds the first and DIVERGED times the lowest, or the last loss is not finite."""
    if not np.isfinite(losses[-1]):
        return True
    curve = smooth_losses(losses, width=SMOOTH * steps)
    return bool(curve[-1] > max(curve[0], DIVERGED * curve.min()))


def suggest_rate(curve: Curve) -> Suggestion | None:
    """The highest rate at which the smoothed loss falls about as steeply as anywhere, over the logarithm of the rate.

    Where it falls evenly over decades the noise of the batches decides where that is steepest. For LeNet on MNIST and two
    seeds it was at 2.5e-5 and 1.5e-4, with a test accuracy of 48.4% and 87.2% after an epoch; the highest rate within
    twice the noise, and at least half as steep, is 3.8e-3 and 8.7e-3, and 4.3e-3 had 97.9%.
    None where the loss never falls, or by no more than the noise of the batches.
    """
    smoothed = curve.smoothed()
    low = int(smoothed.argmin())
    if low == 0 or smoothed[0] - smoothed[low] <= 4 * _noise(curve):
        return None
    left = (smoothed[: low + 1] - smoothed[low]) / (smoothed[0] - smoothed[low])  # share of the fall that is still to come
    falling = np.flatnonzero(left >= NEAR_LOWEST)
    slope = np.gradient(smoothed[: low + 1])[falling]  # a step: the rates are a geometric sequence
    steep = min(slope.min() + 2 * _slope_noise(curve), slope.min() / 2)
    return Suggestion(lr=float(curve.rates[falling[slope <= steep][-1]]), lowest=float(curve.rates[low]))


def _noise(curve: Curve) -> float:
    """Standard deviation of the smoothed loss at an end of the curve.

    From the differences of neighbours; their median is not changed by a diverged end.
    """
    deviation = 1.4826 * float(np.median(np.abs(np.diff(curve.losses)))) / math.sqrt(2)
    averaged = math.sqrt(math.pi) * SMOOTH * len(curve.rates)  # effective number of losses under half a Gaussian
    return deviation / math.sqrt(max(1.0, averaged))


def _slope_noise(curve: Curve) -> float:
    """Standard deviation of the difference of two slopes of the smoothed loss, from second differences, which a trend hardly changes."""
    deviation = 1.4826 * float(np.median(np.abs(np.diff(curve.losses, 2)))) / math.sqrt(6)
    width = SMOOTH * len(curve.rates)
    return deviation * math.sqrt(2 / (4 * math.sqrt(math.pi) * max(width, 1.0) ** 3))  # of the derivative of a Gaussian


def range_test(
    run: RunConfig, rates: Floats, advance: Callable[[], None] = lambda: None, terminal: Terminal | None = None
) -> tuple[Curve, int, bool]:
    """Train one step at each rate; returns the curve, the global batch size, and whether this is rank 0.

    It uses the ranks that torchrun or SLURM started, else one device: the global batch is the same on any number of
    them. Rates are values of optim.lr; base_batch and layer decay change the rate of a step as in a training.
    """
    world = connected_world(run.trainer)
    on_first_rank(lambda: check_start(run))
    from imgrec.data.datamodule import DataModule, build_data
    from imgrec.models.summary import measure_size
    from imgrec.training.callbacks.lr_range import LRRange
    from imgrec.training.distill import read_teacher
    from imgrec.training.module import Classifier
    from imgrec.training.optimizer import written_rate
    from imgrec.training.threads import chosen_threads
    from imgrec.training.trainer import build_trainer, prepare_process
    from imgrec.training.transfer import initial_network

    prepare_process(run)
    data, augment = build_data(run)
    run = chosen_precision(run.with_classes(len(data.classes)))
    run, _ = with_chosen_batch(run, None, data, terminal or Terminal(quiet=True))
    loaders = DataModule(run, data, augment, devices=world.size)
    lr_range = LRRange(
        rates, lr=written_rate(run.optim), diverged=lambda losses: has_diverged(losses, len(rates)), advance=advance
    )
    trainer = build_trainer(
        run.trainer.on_one_device() if world.size == 1 else run.trainer,
        loaders.plan,
        world,
        callbacks=[lr_range],
        logger=False,
        max_steps=len(rates),
        max_epochs=-1,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    net, _ = initial_network(run, data.classes)
    teacher = read_teacher(run, data.classes)
    classifier = Classifier(run, net, data, augment, loaders.plan, teacher=teacher, with_schedule=False)
    if run.weights is None:
        classifier.set_network_from_images(loaders)
    size = measure_size(net, channels=run.data.channels, image_size=run.data.image_size, num_classes=len(data.classes))
    step_operations = size.training_operations(loaders.plan.per_device * loaders.plan.accumulate)
    threads = chosen_threads(run.trainer, world, step_operations=step_operations)
    with threads, closing(loaders), refused_where_memory_ends(run, loaders.plan):
        trainer.fit(classifier, datamodule=loaders)
    losses = np.array(lr_range.losses)
    return Curve(rates, losses[np.isfinite(losses)], lr_range.stopped), loaders.plan.global_size, world.rank == 0


def draw_curve(curve: Curve, suggestion: Suggestion, file: Path) -> None:
    """Draw the curve as PNG: loss over rate on a logarithmic axis, with the suggestion and the lowest loss."""
    from matplotlib.figure import Figure

    done, smoothed = curve.rates[: len(curve.losses)], curve.smoothed()
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(done, curve.losses, color="0.75", linewidth=1, label="loss of the batch")
    axes.plot(done, smoothed, color="tab:blue", linewidth=2, label="smoothed")
    lr, lowest = suggestion.lr, suggestion.lowest
    losses = np.interp([lr, lowest], done, smoothed)
    axes.axvline(lr, color="tab:red", linewidth=1, linestyle="--")
    axes.plot(lr, losses[0], "o", color="tab:red", markersize=8, label=f"highest rate with a steep descent: optim.lr={lr:.2g}")
    axes.plot(lowest, losses[1], "v", color="tab:green", markersize=8, label=f"lowest loss: {lowest:.2g}")
    low, high = float(smoothed.min()), float(smoothed[0])  # without the limits a diverged end would flatten the rest
    axes.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="loss",
        title="Learning-rate range test",
        ylim=(low - 0.15 * (high - low), high + 0.6 * (high - low)),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    atomic_write(file, png_bytes(figure))


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Print the suggestion and the next command, write the plot. ConfigError where no rate can be suggested."""
    tree = compose_run("lr_find", argv, config_dir)
    lr_min, lr_max, file = tree["lr_min"], tree["lr_max"], Path(tree["plot"])
    if lr_min >= lr_max:
        raise ConfigError(f"lr_min={lr_min:g} lr_max={lr_max:g}: expected lr_max above lr_min. Set lr_max={lr_min * FURTHER:g}.")
    if file.suffix.lower() != ".png" or not file.absolute().parent.is_dir():
        raise ConfigError(f"plot={file}: expected a .png file in a folder that exists. Set plot=lr_find.png.")
    check_output("plot", file, (file.suffix,), ours=is_our_png, overwrite=tree["overwrite"])

    run = run_config(tree)
    terminal = Terminal(quiet=read_world().rank > 0)
    rates = np.geomspace(lr_min, lr_max, tree["steps"])
    terminal.say(f"{len(rates)} steps with optim.lr from {rates[0]:g} to {rates[-1]:g}")
    with terminal.bar() as bar:
        task = bar.add_task("range test", total=len(rates), note="")
        curve, batch, is_first = range_test(run, rates, lambda: bar.advance(task), terminal)
    if not is_first:
        return 0
    suggestion = suggest_rate(curve)
    if suggestion is None:
        raise ConfigError(_never_fell(curve, lr_min, lr_max))
    draw_curve(curve, suggestion, file)
    end = f"{'diverged' if curve.diverged else 'had not diverged'} at {curve.rates[len(curve.losses) - 1]:.2g}"
    lr = f"{suggestion.lr:.2g}"
    terminal.say(
        f"suggested optim.lr={lr} (the highest rate with a steep descent; the loss was lowest at {suggestion.lowest:.2g} and {end})",
        style="bold green",
    )
    if run.optim.get("base_batch") is not None:
        from imgrec.training.optimizer import rate_sentence

        terminal.say(f"With it the steps have {rate_sentence({**run.optim, 'lr': float(lr)}, batch)}.")
    if suggestion.lowest == curve.rates[-1]:
        terminal.say(f"The loss was still falling at lr_max={lr_max:g}. Set lr_max={lr_max * FURTHER:g} to see where it ends.")
    terminal.say(f"curve in {file}")
    terminal.say("next:")
    terminal.say(f"  {next_command(argv, config_dir, suggestion.lr, batch if run.batch_size == 'auto' else None)}")
    return 0


def _never_fell(curve: Curve, lr_min: float, lr_max: float) -> str:
    if not len(curve.losses):
        return f"lr_min={lr_min:g}: the first loss is NaN or infinite. Check the data, or set trainer.precision=32."
    smoothed, last_rate = curve.smoothed(), curve.rates[len(curve.losses) - 1]
    path = f"the loss never fell between optim.lr={lr_min:g} and {last_rate:.2g} ({smoothed[0]:.3g} to {smoothed[-1]:.3g}"
    if curve.diverged:
        return f"{path} and diverged). Set lr_min={lr_min / FURTHER:g} lr_max={lr_min:g}."
    return f"{path}). Set lr_max={lr_max * FURTHER:g}, or steps={10 * len(curve.rates)} for a slower rise."


def next_command(argv: Sequence[str], config_dir: str | None, lr: float, batch: int | None = None) -> str:
    """The training with the same overrides and this learning rate; batch: that of batch_size=auto, as the rate is for it."""
    new = {"optim.lr": f"{lr:.2g}"} | ({} if batch is None else {"batch_size": str(batch)})
    kept = [override for override in argv if override.partition("=")[0].lstrip("+") not in (*RANGE_TEST_KEYS, *new)]
    folder = ["--config-dir", config_dir] if config_dir else []
    return shlex.join(["imgrec", "train", *folder, *kept, *(f"{key}={value}" for key, value in new.items())])


if __name__ == "__main__":
    sys.exit(run_command("lr_find", main, sys.argv[1:]))
