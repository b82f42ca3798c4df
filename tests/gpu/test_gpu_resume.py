"""With trainer.deterministic=true a run that was killed, or stopped by a signal, resumes on a GPU bit for bit; NaN stops it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from gpu_run import everything, fresh_ranks
from resumed_runs import STEPS_PER_EPOCH, assert_same, kill_this_process, patch_call, read_outcome

from imgrec.errors import NotFiniteError, Stopped
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.train import fit
from imgrec.training.callbacks.history import History
from imgrec.training.module import Classifier
from imgrec.training.step_boundary import StepBoundary

STOPPED, NOT_FINITE = 75, 3  # exit codes of these tests
MOMENTS: dict[str, tuple[int, Any, str]] = {
    "in the middle of an epoch": (STEPS_PER_EPOCH + 3, StepBoundary, "on_before_optimizer_step"),
    "between two micro-batches": (2 * STEPS_PER_EPOCH + 4, Classifier, "training_step"),
    "at the end of an epoch": (2, History, "on_train_epoch_end"),
}
PRECISIONS = {"cpu": ("32", "bf16-mixed"), "cuda": ("32", "bf16-mixed", "16-mixed")}


def train(rank: int, folder: Path, device: str, words: tuple[str, ...], kill: str | None = None) -> None:
    if kill is not None:
        patch_call(*MOMENTS[kill], kill_this_process)
    fit(everything(folder, device, "trainer.deterministic=true", *words), quiet=True)


def train_to_a_signal(rank: int, folder: Path, device: str, words: tuple[str, ...]) -> None:
    patch_call(STEPS_PER_EPOCH + 2, Classifier, "training_step", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        train(rank, folder, device, words)
    except Stopped:
        os._exit(STOPPED)


def train_with_nan(rank: int, folder: Path, device: str, step: int) -> None:
    whole = Classifier.training_step

    def poisoned(self: Classifier, *args: Any) -> Any:
        return whole(self, *args) * (float("nan") if self.trainer.global_step + 1 == step else 1.0)

    Classifier.training_step = poisoned  # type: ignore[method-assign]
    try:
        fit(everything(folder, device, "trainer.save_every_steps=1"), quiet=True)
    except NotFiniteError as error:
        (folder / "error").write_text(str(error))
        os._exit(NOT_FINITE)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome of an unbroken run, by device and precision."""
    outcomes: dict[tuple[str, str], Any] = {}

    def outcome(device: str, precision: str) -> Any:
        if (device, precision) not in outcomes:
            folder = tmp_path_factory.mktemp("unbroken")
            assert fresh_ranks(train, folder, device, (f"trainer.precision={precision}",)) == [0]
            outcomes[device, precision] = read_outcome(folder / "r/a")
        return outcomes[device, precision]

    return outcome


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, device: str, unbroken: Any, moment: str, precision: str) -> None:
    if precision not in PRECISIONS[device]:
        pytest.skip("imgrec refuses float16 on the CPU")
    words = ("trainer.save_every_steps=1", f"trainer.precision={precision}")
    assert fresh_ranks(train, tmp_path, device, words, moment) == [-signal.SIGKILL]
    assert fresh_ranks(train, tmp_path, device, words) == [0]
    assert_same(read_outcome(tmp_path / "r/a"), unbroken(device, precision))


def test_a_signal_saves_at_a_step_and_the_run_resumes_bit_for_bit(tmp_path: Path, device: str, unbroken: Any) -> None:
    words = ("trainer.precision=bf16-mixed",)
    assert fresh_ranks(train_to_a_signal, tmp_path, device, words) == [STOPPED]
    saved = read_checkpoint(tmp_path / "r/a/checkpoints/last.ckpt")["global_step"]
    assert 0 < saved < 3 * STEPS_PER_EPOCH
    assert fresh_ranks(train, tmp_path, device, words) == [0]
    assert_same(read_outcome(tmp_path / "r/a"), unbroken(device, "bf16-mixed"))


def test_nan_stops_the_run_and_is_in_no_checkpoint(tmp_path: Path, device: str) -> None:
    """The loss is looked at some steps later on a GPU, but before anything is saved."""
    step = STEPS_PER_EPOCH + 2
    assert fresh_ranks(train_with_nan, tmp_path, device, step) == [NOT_FINITE]
    error = (tmp_path / "error").read_text()
    assert "nan" in error
    assert f"step {step} (epoch 2)" in error
    assert read_checkpoint(tmp_path / "r/a/checkpoints/last.ckpt")["global_step"] == step - 1
