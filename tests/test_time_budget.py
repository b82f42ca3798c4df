"""time=5m: as many epochs as fit, a schedule that ends with them, and a resume that knows what was decided."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from error_parts import assert_error, assert_refused
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from processes import exit_codes
from resumed_runs import (
    STEPS_PER_EPOCH,
    assert_same,
    kill_this_process,
    load_run,
    patch_call,
    read_outcome,
)

from imgrec import cli
from imgrec.config.schema import RunConfig
from imgrec.train import fit
from imgrec.training.callbacks import time_budget
from imgrec.training.callbacks.time_budget import TimeBudget, epochs_that_fit
from imgrec.training.module import Classifier
from imgrec.training.step_boundary import StepBoundary

WORDS = ("callbacks.early_stopping.patience=0", "max_device_batch=6", "trainer.save_every_steps=1", "logger=none")


def count_time(step_s: float, validation_s: float = 0.0) -> None:
    """In a fork: the clock of the budget moves with steps and validations alone."""
    passed = [0.0]

    def takes(seconds: float, name: str) -> None:
        whole: Callable[..., Any] = getattr(Classifier, name)

        def timed(self: Classifier, *args: Any) -> Any:
            passed[0] += seconds
            return whole(self, *args)

        setattr(Classifier, name, timed)

    takes(step_s, "training_step")
    takes(validation_s, "on_validation_epoch_end")
    TimeBudget.clock = staticmethod(lambda: passed[0])  # type: ignore[method-assign]


def train(run: RunConfig, *, step_s: float = 10.0, validation_s: float = 0.0, steps: int | None = None, size: int = 1) -> None:
    """On the counted clock, killed before a step if `steps` says so."""

    def work(rank: int) -> None:
        count_time(step_s * (1 + rank), validation_s)
        if steps is not None:
            patch_call(steps, StepBoundary, "on_before_optimizer_step", kill_this_process)
        fit(run, quiet=True)

    assert exit_codes(size, work) == [0 if steps is None else -9] * size


def rates(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


@given(st.floats(0.1, 1e6), st.floats(0, 1e5), st.integers(0, 100), st.floats(0.01, 1e4), st.floats(0, 1e4))
def test_one_epoch_more_would_not_fit(budget: float, elapsed: float, done: int, epoch: float, test: float) -> None:
    found = epochs_that_fit(budget, elapsed_s=elapsed, done=done, epoch_s=epoch, test_s=test)
    assert found >= max(done, 1)
    assert elapsed + (found + 1 - done) * epoch + test > budget * (1 - 1e-9)
    assert found in (done, 1) or elapsed + (found - done) * epoch + test <= budget * (1 + 1e-9)


@pytest.mark.parametrize("scheduler", slow_but(among=["one_cycle", "cosine", "polynomial"]))
def test_the_schedule_ends_with_the_epochs_that_fit(tmp_path: Path, scheduler: str) -> None:
    """Four steps of 10 s and a validation of 4 s; the test has as many images."""
    words = (*WORDS, f"scheduler={scheduler}", "scheduler.warmup_share=0.2")
    train(load_run(tmp_path / "time", *words, "epochs=3", "time=5m"), validation_s=4.0)
    assert exit_codes(1, lambda rank: fit(load_run(tmp_path / "epochs", *words, "epochs=6"), quiet=True)) == [0]
    found, expected = rates(tmp_path / "time/r/a"), rates(tmp_path / "epochs/r/a")
    assert len(found) == 6  # 6 x 44 s and the test of 4 s; 7 would be 312 s
    assert found[1:] == expected[1:]
    assert found[0] != expected[0]  # until the first epoch was measured, `epochs` was the guess


@pytest.mark.slow
def test_a_killed_run_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    words = (*WORDS, "time=4m", "epochs=30")
    train(load_run(tmp_path / "whole", *words))
    run = load_run(tmp_path / "parts", *words)
    train(run, steps=STEPS_PER_EPOCH + 3)
    train(run)
    outcome, whole = (read_outcome(tmp_path / part / "r/a") for part in ("parts", "whole"))
    assert whole["global_step"] == 6 * STEPS_PER_EPOCH
    assert_same(outcome, whole)


class SeenAtValidation(pl.Callback):
    def __init__(self) -> None:
        self.epochs: list[tuple[int, int | None]] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs.append((trainer.current_epoch + 1, trainer.max_epochs))


def test_the_last_epoch_is_known_before_its_validation(tmp_path: Path) -> None:
    """Epochs of 40 s, 80 s, 120 s and 160 s: after the third of them a fifth seems to fit."""
    run = load_run(tmp_path, *WORDS, "epochs=3", "time=0:08:20")

    def work(rank: int) -> None:
        passed, whole, seen = [0.0], Classifier.training_step, SeenAtValidation()

        def timed(self: Classifier, *args: Any) -> Any:
            passed[0] += 10.0 * (1 + self.current_epoch)
            return whole(self, *args)

        Classifier.training_step = timed  # type: ignore[method-assign]
        TimeBudget.clock = staticmethod(lambda: passed[0])  # type: ignore[method-assign]
        fit(run, quiet=True, callbacks=[seen])
        assert seen.epochs[-1] == (4, 4)
        assert all(epoch < epochs for epoch, epochs in seen.epochs[:-1] if epochs is not None)

    assert exit_codes(1, work) == [0]
    assert len(rates(tmp_path / "r/a")) == 4


@pytest.mark.slow  # test_one_epoch_more_would_not_fit has any time of the test
@pytest.mark.parametrize(("limit", "epochs"), [("1.0", 5), ("1", 6)])
def test_a_test_of_fewer_batches_takes_less_of_the_time(tmp_path: Path, limit: str, epochs: int) -> None:
    """Epochs of 40 s and a validation of one batch of 6 images in 10 s; the test has 12, so 20 s, or a batch of them."""
    words = (*WORDS, "data.test_samples=12", f"trainer.limit_test_batches={limit}", "time=0:05:12", "scheduler=cosine")
    train(load_run(tmp_path, *words), validation_s=10.0)
    assert len(rates(tmp_path / "r/a")) == epochs


@pytest.mark.slow
def test_long_epochs_are_estimated_in_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time_budget, "WARM_UP", 1)
    monkeypatch.setattr(time_budget, "ESTIMATED_AT", 2)
    words = (*WORDS, "scheduler=cosine")
    train(load_run(tmp_path / "time", *words, "epochs=30", "time=0:01:40"))
    assert exit_codes(1, lambda rank: fit(load_run(tmp_path / "epochs", *words, "epochs=2"), quiet=True)) == [0]
    assert rates(tmp_path / "time/r/a") == rates(tmp_path / "epochs/r/a")
    capfd.readouterr()

    def work(rank: int) -> None:
        count_time(60.0)
        fit(load_run(tmp_path / "short", *words, "max_device_batch=3", "time=1m"))

    assert exit_codes(1, work) == [0]
    said = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("An epoch"))
    # 11 micro-batches of 1 min in 4 steps, and 6 images of validation, which pass forward only, beside 23 of training
    assert_error(said, "An epoch", "about 11:57", "time=1m", "after one", "trainer.limit_train_batches=0.5")
    assert len(rates(tmp_path / "short/r/a")) == 1


@pytest.mark.slow
def test_two_processes_end_together_when_the_first_says_so(tmp_path: Path) -> None:
    train(load_run(tmp_path, *WORDS, "time=3m", "trainer.devices=auto"), size=2)
    assert len(rates(tmp_path / "r/a")) == 4


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("time=8", ("time=8", "time=8m", "time=8h")),
        ("time=0m", ("time=0m", "time=30m")),
        ("time=soon", ("time=soon", "time=90m")),
    ],
)
def test_what_is_no_time(capsys: pytest.CaptureFixture[str], word: str, parts: tuple[str, ...]) -> None:
    assert cli.main(["train", word]) == 2
    assert_refused(capsys.readouterr().err, *parts)
