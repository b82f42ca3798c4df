"""The same on several processes, and on another number of them than before."""

import os
import signal
from pathlib import Path

import pytest
import torch
from error_parts import assert_error, assert_refused
from marks import slow_but
from processes import exit_codes, run_ranks, wait_until
from resumed_runs import (
    assert_same,
    finish_run,
    hang_over_sample,
    kill_run,
    kill_worker_at_sample,
    load_run,
    patch_call,
    read_outcome,
)

from imgrec.config.schema import RunConfig
from imgrec.distributed.flag_reduction import FlagReduction
from imgrec.errors import Stopped
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.train import fit
from imgrec.training.module import Classifier
from imgrec.training.step_boundary import StepBoundary


def together(folder: Path, *words: str) -> RunConfig:
    return load_run(folder, "trainer.devices=auto", *words)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict:
    return finish_run(together(tmp_path_factory.mktemp("unbroken")), size=2)


@pytest.mark.parametrize("workers", slow_but(0, among=(0, 1)))
def test_two_killed_processes_resume_bit_for_bit(tmp_path, workers):
    words = ("epochs=2", "callbacks.early_stopping.patience=1")
    unbroken = finish_run(together(tmp_path / "unbroken", *words), size=2)
    run = together(tmp_path / "killed", *words, "trainer.save_every_steps=1", f"num_workers={workers}")
    kill_run(run, 6, StepBoundary, "on_before_optimizer_step", size=2)
    assert_same(finish_run(run, size=2), unbroken)


@pytest.mark.slow
def test_three_killed_processes_resume_bit_for_bit(tmp_path):
    """Two sums of two are equal in either order; of three they differ, and DDP's first step has an order of its own."""
    whole = finish_run(together(tmp_path / "whole"), size=3)
    run = together(tmp_path / "parts", "trainer.save_every_steps=1")
    kill_run(run, 6, StepBoundary, "on_before_optimizer_step", size=3)
    assert_same(finish_run(run, size=3), whole)


@pytest.mark.slow
def test_two_processes_killed_in_the_test_repeat_the_test_alone(tmp_path, unbroken):
    run = together(tmp_path)
    kill_run(run, 1, Classifier, "test_step", size=2)
    assert_same(finish_run(run, size=2), unbroken)


# The signal comes in this step on rank 1; all ranks read it at the second boundary after that.
STOPS = {
    6: ("at step 7 (epoch 2 of 3); saved", {"epoch": 1, "done": 3, "stage": "train", "step": 7}),
    7: ("at step 8 (epoch 2 of 3); saved", {"epoch": 1, "done": 4, "stage": "validate", "step": 8}),
    8: ("at step 8 (epoch 3 of 3); saved", {"epoch": 2, "done": 0, "stage": "train", "step": 8}),  # the validation has one batch
    12: ("in the test; saved", {"epoch": 3, "done": 0, "stage": "end", "step": 12}),
}


@pytest.mark.slow
@pytest.mark.parametrize("step", slow_but(7, among=STOPS))
def test_a_signal_for_one_rank_stops_all_at_the_same_step(tmp_path, unbroken, step):
    run = together(tmp_path)

    def work(rank: int) -> None:
        if rank == 1:
            patch_call(step, StepBoundary, "on_before_optimizer_step", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(Stopped) as stop:
            fit(run, quiet=True)
        (tmp_path / f"said{rank}").write_text(str(stop.value))

    assert exit_codes(2, work) == [0, 0]
    said, position = STOPS[step]
    for rank in (0, 1):
        assert said in (tmp_path / f"said{rank}").read_text()
    assert read_checkpoint(tmp_path / "r/a/checkpoints/last.ckpt")["resume"]["position"] == position
    assert_same(finish_run(run, size=2), unbroken)


@pytest.mark.slow
def test_a_stop_while_a_loader_process_of_one_rank_hangs_ends_all_as_they_were_saved(tmp_path, unbroken, capfd):
    """The others are in the backward pass of a step that this rank cannot begin."""
    run = together(tmp_path, "num_workers=1", "trainer.save_every_steps=1", "trainer.grace_s=1.0")

    def work(rank: int) -> None:
        hang_over_sample(run, 17, 2)  # the last of the third step
        fit(run, quiet=True)

    assert exit_codes(2, work) == [75, 75]
    assert_refused(capfd.readouterr().err, "stopped by SIGTERM", "1 s", "since step 1", "same command")
    assert_same(finish_run(run, size=2), unbroken)


@pytest.mark.slow
def test_a_loader_process_of_one_rank_that_is_killed_ends_all_with_a_save(tmp_path, unbroken):
    run = together(tmp_path, "num_workers=1")

    def work(rank: int) -> None:
        kill_worker_at_sample(run, 17)
        with pytest.raises(Stopped) as stop:
            fit(run, quiet=True)
        (tmp_path / f"said{rank}").write_text(str(stop.value))

    assert exit_codes(2, work) == [0, 0]
    said = (tmp_path / "said0").read_text()
    assert_error(said, "stopped by the loss of loader worker", "killed by SIGKILL", "on rank", "saved", "same command")
    assert read_checkpoint(tmp_path / "r/a/checkpoints/last.ckpt")["global_step"] >= 2
    assert_same(finish_run(run, size=2), unbroken)


def test_a_rank_does_not_wait_for_the_others_at_a_boundary(tmp_path):
    """Rank 1 comes to its second boundary only when rank 0 has left its own."""

    def work(rank: int) -> list[list[bool]]:
        flags, found = FlagReduction(2), []
        for boundary in range(3):
            if (rank, boundary) == (1, 1):
                wait_until((tmp_path / "left").exists)
            found.append(flags.result())
            flags.start(rank == 0 and boundary == 0, rank == 1 and boundary == 1)
            if (rank, boundary) == (0, 1):
                (tmp_path / "left").touch()
        return [*found, flags.result()]

    expected = [[False, False], [True, False], [False, True], [False, False]]
    assert run_ranks(2, work, group=True) == [expected, expected]


@pytest.mark.slow
def test_saves_by_the_clock_come_at_the_start_of_an_epoch_on_all_ranks(tmp_path, unbroken):
    run = together(tmp_path)

    def work(rank: int) -> None:
        steps = []
        StepBoundary._is_time_to_save = lambda self, trainer, now: not trainer.training
        save = StepBoundary._save
        StepBoundary._save = lambda self, trainer, now, *state: (
            steps.append((now.stage, now.step)),
            save(self, trainer, now, *state),
        )
        end = StepBoundary.on_train_end
        StepBoundary.on_train_end = lambda self, *args: (end(self, *args), under_way.append(self._flags._work))
        under_way: list[object] = []
        fit(run, quiet=True)
        assert under_way == [None]
        (tmp_path / f"steps{rank}").write_text(str(steps))

    assert exit_codes(2, work) == [0, 0]
    expected = [("train", 4), ("train", 8), ("end", 12)]
    for rank in (0, 1):
        assert (tmp_path / f"steps{rank}").read_text() == str(expected)
    assert_same(read_outcome(tmp_path / "r/a"), unbroken)


@pytest.mark.slow
def test_after_an_error_on_one_rank_the_run_resumes_from_its_last_save(tmp_path, unbroken):
    run = together(tmp_path, "trainer.save_every_steps=3")

    def work(rank: int) -> None:
        def fail(*_) -> None:
            raise RuntimeError("out of memory")

        if rank == 1:
            patch_call(8, Classifier, "training_step", fail)
        fit(run, quiet=True)

    assert exit_codes(2, work) == [1, 1]
    assert read_checkpoint(tmp_path / "r/a/checkpoints/last.ckpt")["global_step"] == 6
    assert_same(finish_run(run, size=2), unbroken)


# No batch norm, whose statistics are a device's own, and no dropout, which each process draws for itself.
SAME = ("model.norm=none", "model.dense_dropout=0", "model.stage_dropout=0")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 1)])
def test_on_another_number_of_processes_it_is_the_same_run_to_rounding(tmp_path, before, after):
    whole = finish_run(together(tmp_path / "whole", *SAME))
    run = together(tmp_path / "parts", *SAME, "trainer.save_every_steps=1")

    kill_run(run, 7, StepBoundary, "on_before_optimizer_step", size=before)
    found = finish_run(run, size=after)
    for kind in ("state_dict", "current_model_state"):
        assert found[kind].keys() == whole[kind].keys()
        for name, value in whole[kind].items():
            torch.testing.assert_close(found[kind][name], value, rtol=1e-4, atol=1e-6)
    assert [row["step"] for row in found["rows"]] == [row["step"] for row in whole["rows"]]
    for row, expected in zip(found["rows"], whole["rows"], strict=True):
        for key in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
            assert float(row[key]) == pytest.approx(float(expected[key]), rel=1e-4), key
