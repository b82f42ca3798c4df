"""Schedules against torch's own at every step, and against closed forms at the first, last warm-up, middle and last step."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as theirs

from imgrec.config.instantiate import instantiate
from imgrec.config.load import load_config
from imgrec.config.options import option_names
from imgrec.training import scheduler as ours
from imgrec.training.lightning_compat import silence_known_warnings

EPOCHS, PER_EPOCH = 6, 7
TOTAL = EPOCHS * PER_EPOCH
RUN = {"total_steps": TOTAL, "steps_per_epoch": PER_EPOCH}
LR = 0.4


def optimizer() -> SGD:
    return SGD([torch.nn.Parameter(torch.ones(2))], lr=LR)


def torch_rates(make: Callable[[Optimizer], Any], *, per_epoch: bool = False, steps: int = TOTAL) -> list[float]:
    """The rate torch uses at each optimizer step; per_epoch: its scheduler is stepped at the ends of epochs."""
    sgd = optimizer()
    schedule = make(sgd)
    rates = []
    for step in range(steps):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        if (not per_epoch or (step + 1) % PER_EPOCH == 0) and step + 1 < steps:
            schedule.step()
    return rates


def our_rates(factor: ours.Factor, steps: int = TOTAL) -> list[float]:
    return [LR * factor(step) for step in range(steps)]


SAME = [
    (ours.constant(**RUN, warmup_share=0), lambda o: theirs.ConstantLR(o, factor=1.0), False),
    (ours.cosine(**RUN, warmup_share=0, floor=0.1), lambda o: theirs.CosineAnnealingLR(o, TOTAL, 0.1 * LR), False),
    (ours.polynomial(**RUN, warmup_share=0, power=2.5, floor=0), lambda o: theirs.PolynomialLR(o, TOTAL, power=2.5), False),
    (ours.polynomial(**RUN, warmup_share=0, power=1, floor=0.2), lambda o: theirs.LinearLR(o, 1.0, 0.2, TOTAL), False),
    (
        ours.exponential(**RUN, warmup_share=0, gamma_per_epoch=0.7),
        lambda o: theirs.ExponentialLR(o, gamma=0.7 ** (1 / PER_EPOCH)),
        False,
    ),
    (ours.step(**RUN, warmup_share=0, every_epochs=2, factor=0.3), lambda o: theirs.StepLR(o, 2, gamma=0.3), True),
    (
        ours.multistep(**RUN, warmup_share=0, milestones_epochs=[1, 4], factor=0.3),
        lambda o: theirs.MultiStepLR(o, [1, 4], gamma=0.3),
        True,
    ),
    (
        ours.cyclic(**RUN, warmup_share=0, floor=0.1, up_epochs=1, down_epochs=2, shrink=1.0),
        lambda o: theirs.CyclicLR(o, 0.1 * LR, LR, PER_EPOCH, 2 * PER_EPOCH, mode="triangular", cycle_momentum=False),
        False,
    ),
    (
        ours.cyclic(**RUN, warmup_share=0, floor=0.1, up_epochs=1, down_epochs=1, shrink=0.5),
        lambda o: theirs.CyclicLR(o, 0.1 * LR, LR, PER_EPOCH, mode="triangular2", cycle_momentum=False),
        False,
    ),
]


@pytest.mark.parametrize(("factor", "make", "per_epoch"), SAME)
def test_equals_torch_at_every_step(factor: ours.Factor, make: Callable[[Optimizer], Any], per_epoch: bool) -> None:
    assert our_rates(factor) == pytest.approx(torch_rates(make, per_epoch=per_epoch), rel=1e-9, abs=1e-15)


def test_exponential_equals_torch_at_the_starts_of_epochs() -> None:
    rates = our_rates(ours.exponential(**RUN, warmup_share=0, gamma_per_epoch=0.7))
    expected = torch_rates(lambda o: theirs.ExponentialLR(o, gamma=0.7), per_epoch=True)
    assert rates[::PER_EPOCH] == pytest.approx(expected[::PER_EPOCH], rel=1e-9)


@given(total=st.integers(2, 60), share=st.floats(0, 0.99), start=st.floats(0.01, 1), end=st.floats(1e-6, 1))
def test_one_cycle_equals_torch(total: int, share: float, start: float, end: float) -> None:
    if share * total == 1:
        share = 0.0  # torch divides 0 by 0 where the top is at step 0
    factor = ours.one_cycle(total_steps=total, steps_per_epoch=5, warmup_share=share, start=start, end=end)
    expected = torch_rates(
        lambda o: theirs.OneCycleLR(
            o, LR, total, pct_start=share, div_factor=1 / start, final_div_factor=start / end, cycle_momentum=False
        ),
        steps=total,
    )
    assert our_rates(factor, total) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", sorted({*option_names("scheduler")} - {"plateau", "cyclic"}))  # cyclic begins at its floor
def test_the_only_step_of_a_run_has_the_full_rate(name: str) -> None:
    """torch's OneCycleLR gives it the last rate, a millionth of the full one: nothing would be learned."""
    node = load_config("train", [f"scheduler={name}"]).scheduler
    assert instantiate(node)(total_steps=1, steps_per_epoch=1)(0) == 1


def test_one_cycle_with_its_top_at_the_first_step() -> None:
    factor = ours.one_cycle(total_steps=5, steps_per_epoch=5, warmup_share=0.2, start=0.04, end=0.5)
    assert [factor(0), factor(2), factor(4)] == pytest.approx([1.0, 0.75, 0.5])


def test_cosine_with_warmup_at_the_steps_that_matter() -> None:
    factor = ours.cosine(total_steps=110, steps_per_epoch=11, warmup_share=10 / 110, floor=0.2)
    assert factor(0) == pytest.approx(0.1)  # not 0: the first step learns
    assert factor(4) == pytest.approx(0.5)
    assert factor(9) == 1.0  # the last warm-up step
    assert factor(10) == 1.0  # the first after it
    assert factor(60) == pytest.approx(0.6)  # half way between 1 and the floor
    assert factor(109) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 0.99)) / 2)  # the last step
    assert factor(110) == pytest.approx(0.2)
    assert factor(500) == pytest.approx(0.2)  # a run that goes on stays there: torch's cosine would rise again


def test_polynomial_with_warmup_at_the_steps_that_matter() -> None:
    factor = ours.polynomial(total_steps=110, steps_per_epoch=11, warmup_share=10 / 110, power=2, floor=0.2)
    assert [factor(s) for s in (0, 9, 10, 60, 109, 110, 500)] == pytest.approx([0.1, 1, 1, 0.4, 0.2 + 0.8 * 0.01**2, 0.2, 0.2])


def test_epoch_schedules_count_epochs_of_the_run_with_the_warmup() -> None:
    settings = {"total_steps": 40, "steps_per_epoch": 10, "warmup_share": 0.125}
    multistep = ours.multistep(**settings, milestones_epochs=[1, 3], factor=0.5)  # type: ignore[arg-type]
    assert [multistep(s) for s in (0, 4, 5, 9, 10, 29, 30, 39)] == pytest.approx([0.2, 1, 1, 1, 0.5, 0.5, 0.25, 0.25])
    every = ours.step(**settings, every_epochs=2, factor=0.1)  # type: ignore[arg-type]
    assert [every(s) for s in (0, 4, 19, 20, 39)] == pytest.approx([0.2, 1, 1, 0.1, 0.1])


def test_exponential_and_cyclic_start_where_the_warmup_ends() -> None:
    settings = {"total_steps": 40, "steps_per_epoch": 10, "warmup_share": 0.25}
    exponential = ours.exponential(**settings, gamma_per_epoch=0.5)  # type: ignore[arg-type]
    assert [exponential(s) for s in (0, 9, 10, 20, 39, 40)] == pytest.approx([0.1, 1, 1, 0.5, 0.5**2.9, 0.125])
    cyclic = ours.cyclic(**settings, floor=0.5, up_epochs=1, down_epochs=1, shrink=1.0)  # type: ignore[arg-type]
    assert [cyclic(s) for s in (0, 9, 10, 15, 20, 30)] == pytest.approx([0.05, 0.5, 0.5, 0.75, 1.0, 0.5])


@given(total=st.integers(1, 200), share=st.floats(0, 0.999))
def test_a_factor_never_leaves_0_to_1(total: int, share: float) -> None:
    for factor in (
        ours.cosine(total_steps=total, steps_per_epoch=3, warmup_share=share, floor=0),
        ours.one_cycle(total_steps=total, steps_per_epoch=3, warmup_share=share, start=0.04, end=0),
        ours.cyclic(total_steps=total, steps_per_epoch=3, warmup_share=share, floor=0, up_epochs=0.5, down_epochs=2, shrink=0.5),
    ):
        assert all(-1e-12 <= factor(step) <= 1 + 1e-12 for step in range(total + 1))


COSINE = {"_target_": "imgrec.training.scheduler.cosine", "_partial_": True, "warmup_share": 0.1, "floor": 0.0}
PLATEAU = {
    "_target_": "imgrec.training.scheduler.Plateau",
    "_partial_": True,
    "warmup_share": 0.1,
    "monitor": "val/loss",
    "factor": 0.1,
    "patience_epochs": 1,
    "threshold": 0.0,
    "cooldown_epochs": 0,
    "floor": 0.0,
}


def test_lightning_scheduler_keeps_the_rates_of_groups_and_resumes_exactly() -> None:
    def make() -> tuple[SGD, Any]:
        groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in (0.4, 0.1)]
        sgd = SGD(groups, lr=0.4)
        (entry,) = ours.lightning_schedulers(COSINE, sgd, **RUN)
        assert (entry["interval"], entry["frequency"]) == ("step", 1)
        return sgd, entry["scheduler"]

    factor = ours.cosine(**RUN, warmup_share=0.1, floor=0.0)
    sgd, schedule = make()
    for step in range(TOTAL):
        assert [group["lr"] for group in sgd.param_groups] == pytest.approx([0.4 * factor(step), 0.1 * factor(step)], rel=1e-12)
        sgd.step()
        schedule.step()
        if step == TOTAL // 2:
            state = {"optimizer": sgd.state_dict(), "schedule": schedule.state_dict()}
            sgd, schedule = make()
            sgd.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])


def test_plateau_and_its_warmup_do_not_undo_each_other() -> None:
    sgd = optimizer()
    ramp, watch = ours.lightning_schedulers(PLATEAU, sgd, total_steps=50, steps_per_epoch=5)
    assert (ramp["interval"], watch["interval"], watch["monitor"]) == ("step", "epoch", "val/loss")
    rates = []
    losses = [1.0, 0.9, 0.95, 0.95, 0.5, 0.4, 0.4, 0.3, 0.3, 0.3]  # the second in a row that is no better: the 4th, the 10th
    for loss in losses:
        for _ in range(5):
            rates.append(sgd.param_groups[0]["lr"])
            sgd.step()
            ramp["scheduler"].step()
        watch["scheduler"].step(loss)
    expected = [LR * step / 5 for step in range(1, 6)] + [LR] * 15 + [LR / 10] * 30
    assert rates == pytest.approx(expected, rel=1e-9)
    assert sgd.param_groups[0]["lr"] == pytest.approx(LR / 100)


def test_plateau_wants_a_loss_to_fall_and_an_accuracy_to_rise() -> None:
    for monitor, figures in (("val/loss", [0.3, 0.2, 0.1]), ("val/accuracy", [0.1, 0.2, 0.3])):
        for order, falls in ((figures, 0), (figures[::-1], 2)):
            sgd = optimizer()
            node = {**PLATEAU, "warmup_share": 0.0, "monitor": monitor, "patience_epochs": 0}
            (watch,) = ours.lightning_schedulers(node, sgd, **RUN)
            for figure in order:
                watch["scheduler"].step(figure)
            assert sgd.param_groups[0]["lr"] == pytest.approx(LR * 0.1**falls)


def test_plateau_stops_at_the_floor_of_each_group() -> None:
    sgd = SGD([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in (0.4, 1e-8)], lr=0.4)
    (watch,) = ours.lightning_schedulers({**PLATEAU, "warmup_share": 0.0, "floor": 0.05, "patience_epochs": 0}, sgd, **RUN)
    seen = []
    for _ in range(3):
        watch["scheduler"].step(1.0)
        seen.append([group["lr"] for group in sgd.param_groups])
    assert seen == [pytest.approx(row, rel=1e-9) for row in ([0.4, 1e-8], [0.04, 1e-9], [0.02, 5e-10])]


@pytest.mark.parametrize("node", [COSINE, PLATEAU])
def test_a_first_step_that_the_float16_scaler_skips_warns_of_nothing(node: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silence_known_warnings()
        entry = ours.lightning_schedulers(node, optimizer(), **RUN)[0]
        entry["scheduler"].step()
