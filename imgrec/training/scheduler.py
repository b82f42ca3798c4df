"""Learning-rate schedules: pure functions of the optimizer step, and their thin shell for Lightning.

Each schedule returns the factor on optim.lr, the highest rate of the run, at optimizer step 0, 1, ...; groups with
their own rate keep their share of it. The first `warmup_share` of all steps multiplies by (step + 1) / warmup_steps:
step 0 already learns, and the last warm-up step has the full rate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

from imgrec.config.annotations import is_number
from imgrec.config.instantiate import instantiate, wrong_result
from imgrec.config.schema import Monitor, monitor_mode

Factor = Callable[[int], float]


def warmup_steps(total_steps: int, warmup_share: float) -> int:
    """Whole steps of warm-up, rounded half to even, for 0 <= warmup_share < 1."""
    assert total_steps >= 1, total_steps
    return round(total_steps * warmup_share)


def _with_warmup(total_steps: int, warmup_share: float, body: Factor) -> Factor:
    warmup = warmup_steps(total_steps, warmup_share)
    return lambda step: body(step) * ((step + 1) / warmup if step < warmup else 1.0)


def _after_warmup(total_steps: int, warmup_share: float, body: Callable[[float], float]) -> Factor:
    """The warm-up, then body(x) with x from 0 at the first step after it to 1 at step total_steps and later."""
    warmup = warmup_steps(total_steps, warmup_share)
    body_steps = max(total_steps - warmup, 1)
    return _with_warmup(total_steps, warmup_share, lambda step: body(min(max(step - warmup, 0) / body_steps, 1.0)))


def constant(*, total_steps: int, steps_per_epoch: int, warmup_share: float) -> Factor:
    """1 throughout, after the warm-up."""
    return _after_warmup(total_steps, warmup_share, lambda x: 1.0)


def cosine(*, total_steps: int, steps_per_epoch: int, warmup_share: float, floor: float) -> Factor:
    """Half a cosine from 1 to `floor` (Loshchilov 2017, SGDR; torch's CosineAnnealingLR with T_max=total_steps).

    As in `polynomial`, the floor is reached at step total_steps, just after the last: a step at rate 0 would be lost.
    """
    return _after_warmup(total_steps, warmup_share, lambda x: floor + (1 - floor) * (1 + math.cos(math.pi * x)) / 2)


def polynomial(*, total_steps: int, steps_per_epoch: int, warmup_share: float, power: float, floor: float) -> Factor:
    """floor + (1 - floor) * (1 - x) ** power; power 1 is a straight line (torch's PolynomialLR where floor is 0)."""
    return _after_warmup(total_steps, warmup_share, lambda x: floor + (1 - floor) * (1 - x) ** power)


def exponential(*, total_steps: int, steps_per_epoch: int, warmup_share: float, gamma_per_epoch: float) -> Factor:
    """gamma_per_epoch ** (epochs since the warm-up), in each step (torch's ExponentialLR at the ends of epochs)."""
    warmup = warmup_steps(total_steps, warmup_share)
    # Of the step alone, so that a run of more epochs begins with the same bits.
    return _with_warmup(total_steps, warmup_share, lambda step: gamma_per_epoch ** (max(step - warmup, 0) / steps_per_epoch))


def step(*, total_steps: int, steps_per_epoch: int, warmup_share: float, every_epochs: int, factor: float) -> Factor:
    """Times `factor` after every `every_epochs` epochs of the run, the warm-up's included (torch's StepLR)."""
    return _with_warmup(total_steps, warmup_share, lambda step: factor ** (step // steps_per_epoch // every_epochs))


def multistep(
    *, total_steps: int, steps_per_epoch: int, warmup_share: float, milestones_epochs: list[int], factor: float
) -> Factor:
    """Times `factor` at the start of each of these epochs, from 0 and with the warm-up (torch's MultiStepLR)."""
    starts = [start * steps_per_epoch for start in milestones_epochs]
    return _with_warmup(total_steps, warmup_share, lambda step: factor ** sum(step >= start for start in starts))


def cyclic(
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_share: float,
    floor: float,
    up_epochs: float,
    down_epochs: float,
    shrink: float,
) -> Factor:
    """Triangles from `floor` to 1 and back, each `shrink` times as high as the last (Smith 2017).

    shrink 1 is the mode "triangular" of torch's CyclicLR, 0.5 its "triangular2". The warm-up ends at the floor.
    """
    warmup = warmup_steps(total_steps, warmup_share)
    up, down = (max(round(epochs * steps_per_epoch), 1) for epochs in (up_epochs, down_epochs))

    def triangles(step: int) -> float:
        cycle, position = divmod(max(step - warmup, 0), up + down)
        height = position / up if position <= up else (up + down - position) / down
        return floor + (1 - floor) * height * shrink**cycle

    return _with_warmup(total_steps, warmup_share, triangles)


def one_cycle(*, total_steps: int, steps_per_epoch: int, warmup_share: float, start: float, end: float) -> Factor:
    """Half a cosine from `start` up to 1 over the first warmup_share, then one down to `end` at the last step.

    Smith 2018, "Super-Convergence". Equal at every step to torch's OneCycleLR(max_lr=optim.lr, pct_start=warmup_share,
    div_factor=1/start, final_div_factor=start/end, cycle_momentum=False). The rise is the warm-up. A run of one step has 1,
    where torch's is `end`.
    """
    # The peak may lie between two steps, as in torch.
    peak, last = warmup_share * total_steps - 1, total_steps - 1

    def between(first: float, second: float, x: float) -> float:
        return second + (first - second) * (1 + math.cos(math.pi * x)) / 2

    def factor(step: int) -> float:
        if last == 0:
            return 1.0
        step = min(step, last)
        return between(start, 1, step / peak) if step <= peak and peak > 0 else between(1, end, (step - peak) / (last - peak))

    return factor


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Times `factor` when `monitor` has not improved by the share `threshold` for more than patience_epochs.

    torch's ReduceLROnPlateau, with a validation after each epoch. A loss improves downwards, the others upwards.
    It depends on a metric, so `lightning_schedulers` makes two torch schedulers of it.
    """

    total_steps: int
    steps_per_epoch: int
    warmup_share: float
    monitor: Monitor
    factor: float
    patience_epochs: int
    threshold: float
    cooldown_epochs: int
    floor: float


def lightning_schedulers(
    node: dict[str, Any], optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int
) -> list[dict[str, Any]]:
    """The conf/scheduler node as Lightning's list of {"scheduler", "interval", "frequency"}, and "monitor" for plateau.

    Steps are optimizer steps (after accumulation). States are plain numbers: a resumed run makes the functions anew.
    """
    schedule = instantiate(node | {"_partial_": False}, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    if not isinstance(schedule, Plateau) and not (callable(schedule) and is_number(schedule(0))):
        raise wrong_result("scheduler", node, "a function that returns the factor on optim.lr at a step", schedule)
    if not isinstance(schedule, Plateau):
        return [{"scheduler": LambdaLR(optimizer, schedule), "interval": "step", "frequency": 1}]

    rates = [group["lr"] for group in optimizer.param_groups]
    schedulers: list[dict[str, Any]] = []
    warmup = warmup_steps(total_steps, schedule.warmup_share)
    if warmup > 1:  # it multiplies the current rate, so it and the plateau do not undo each other
        ramp = LinearLR(optimizer, start_factor=1 / warmup, end_factor=1.0, total_iters=warmup - 1)
        schedulers.append({"scheduler": ramp, "interval": "step", "frequency": 1})
    reduce = ReduceLROnPlateau(
        optimizer,
        mode=monitor_mode(schedule.monitor),
        factor=schedule.factor,
        patience=schedule.patience_epochs,
        threshold=schedule.threshold,
        cooldown=schedule.cooldown_epochs,
        min_lr=[rate * schedule.floor for rate in rates],
        eps=0.0,  # torch's 1e-8 is an absolute rate: it would stop small ones from falling
    )
    schedulers.append({"scheduler": reduce, "interval": "epoch", "frequency": 1, "monitor": schedule.monitor})
    return schedulers


def begins_alike(node: dict[str, Any], *, steps: int, total_steps: tuple[int, int], steps_per_epoch: int) -> bool:
    """Whether the schedules of two lengths have the same rate, to the last bit, in the first `steps` steps and the one after."""
    first, second = (
        instantiate(node | {"_partial_": False}, total_steps=total, steps_per_epoch=steps_per_epoch) for total in total_steps
    )
    if isinstance(first, Plateau):
        return len({warmup_steps(total, first.warmup_share) for total in total_steps}) == 1
    return all(first(step) == second(step) for step in range(steps + 1))


def stretch(node: dict[str, Any], scheduler: object, *, total_steps: int, steps_per_epoch: int) -> None:
    """Make one of `lightning_schedulers` the schedule of another number of steps. A plateau has none, its warm-up stays."""
    if isinstance(scheduler, LambdaLR):
        schedule = instantiate(node)(total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        scheduler.lr_lambdas = [schedule] * len(scheduler.lr_lambdas)
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = rate * schedule(scheduler.last_epoch)
