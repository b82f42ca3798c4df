"""The same on several processes, and on another number of them than before."""

import os
import signal
from pathlib import Path

import pytest
import torch
from processes import exit_codes
from resumed_runs import assert_same, finish_run, kill_run, load_run, patch_call

from imgrec.config.schema import RunConfig
from imgrec.errors import Stopped
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.train import fit
from imgrec.training.module import Classifier
from imgrec.training.step_boundary import StepBoundary


def together(folder: Path, *words: str) -> RunConfig:
    return load_run(folder, "trainer.devices=auto", "trainer.timeout_s=20", *words)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict:
    return finish_run(together(tmp_path_factory.mktemp("unbroken")), size=2)


def test_two_killed_processes_go_on_as_if_nothing_had_been(tmp_path, unbroken):
    run = together(tmp_path, "trainer.save_every_steps=1", "num_workers=2")

    kill_run(run, 6, StepBoundary, "on_before_optimizer_step", size=2)
    assert_same(finish_run(run, size=2), unbroken)


def test_two_processes_killed_in_the_test_repeat_the_test_alone(tmp_path, unbroken):
    run = together(tmp_path)
    kill_run(run, 1, Classifier, "test_step", size=2)
    assert_same(finish_run(run, size=2), unbroken)


def test_a_signal_for_one_process_stops_all_at_the_same_step(tmp_path, unbroken):
    run = together(tmp_path)

    def work(rank: int) -> None:
        if rank == 1:
            patch_call(6, StepBoundary, "on_before_optimizer_step", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(Stopped) as stop:
            fit(run, quiet=True)
        (tmp_path / f"said{rank}").write_text(str(stop.value))

    assert exit_codes(2, work) == [0, 0]
    said = [(tmp_path / f"said{rank}").read_text() for rank in (0, 1)]
    assert "at step 6 (epoch 2 of 3); saved." in said[0]
    assert "at step 6 (epoch 2 of 3); saved." in said[1]
    assert read_checkpoint(tmp_path / "r/a/checkpoints/last.ckpt")["global_step"] == 6
    assert_same(finish_run(run, size=2), unbroken)


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
