"""Every figure of a report names the weights it was measured with, also where a run was moved or its best.ckpt lost."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from error_parts import assert_error
from marks import slow_but
from processes import exit_codes
from resumed_runs import STEPS_PER_EPOCH, assert_same, finish_run, kill_run, kill_this_process, load_run, read_outcome

import imgrec
import imgrec.training.checkpoint
from imgrec import config
from imgrec.inference.checkpoint import weights_hash
from imgrec.train import fit
from imgrec.training import rank
from imgrec.training.module import Classifier
from imgrec.training.step_boundary import StepBoundary
from imgrec.training.tested_checkpoint import read_tested

# Its second epoch is the best.
WORDS = (
    "epochs=6",
    "monitor=val/loss",
    "callbacks.ema.decay=0.0",
    "callbacks.early_stopping.patience=0",
    "trainer.save_every_steps=1",
    "logger=none",
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the run has learnt, and its result.json."""
    run = load_run(tmp_path_factory.mktemp("unbroken"), *WORDS)
    outcome = finish_run(run)
    result = assert_named(Path(run.runs_dir) / "r/a")
    assert 1 < result["best"]["epoch"] < 5
    assert result["weights"]["test"] == result["weights"]["best"] != result["weights"]["last"]
    return outcome, result


def read_result(run: config.RunConfig) -> dict[str, Any]:
    return dict(json.loads((Path(run.runs_dir) / "r/a/result.json").read_text()))


def measured(file: Path, split: str) -> tuple[float, float]:
    report = imgrec.load(file, device="cpu").evaluate(split, num_workers=0)
    return report.loss, report.accuracy


def assert_named(folder: Path) -> dict[str, Any]:
    """result.json, in which each figure names the file whose weights give it, by its path in the folder, and their hash."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    for figure, split in (("best", "val"), ("last", "val"), ("test", "test")):
        named, row = result["weights"][figure], result[figure]
        assert weights_hash(torch.load(folder / named["file"], weights_only=True)) == named["sha256"], figure
        expected = (row["loss"], row["accuracy"]) if figure == "test" else (row["val/loss"], row["val/accuracy"])
        assert measured(folder / named["file"], split) == pytest.approx(expected, rel=1e-5), figure
        assert figure == "test" or named["epoch"] == row["epoch"]
    return result


def kill_after_the_best_epoch(run: config.RunConfig, result: dict[str, Any]) -> None:
    kill_run(run, result["best"]["epoch"] * STEPS_PER_EPOCH + 3, StepBoundary, "on_before_optimizer_step")


@pytest.mark.slow
def test_a_project_that_is_moved_after_its_best_epoch_ends_like_one_that_stayed(tmp_path, unbroken):
    outcome, result = unbroken
    run = load_run(tmp_path / "here", *WORDS)
    kill_after_the_best_epoch(run, result)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = load_run(tmp_path / "there", *WORDS)
    assert_same(finish_run(moved), outcome)
    assert not (tmp_path / "here").exists()
    assert assert_named(tmp_path / "there/r/a")["weights"] == result["weights"]


def remove(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    os.truncate(file, 3000)


def replace_weights(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    next(iter(content["state_dict"].values())).add_(1)
    torch.save(content, file)


DAMAGES: dict[Callable[[Path], None], str] = {remove: "is missing", cut: "truncated", replace_weights: "other weights"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", slow_but(cut, among=DAMAGES))
def test_a_best_checkpoint_that_is_lost_in_the_middle_is_told_and_the_run_ends_with_what_there_is(
    tmp_path, unbroken, capfd, damage
):
    run = load_run(tmp_path, *WORDS)
    kill_after_the_best_epoch(run, unbroken[1])
    best = tmp_path / "r/a/checkpoints/best.ckpt"
    damage(best)
    assert exit_codes(1, lambda rank: fit(run)) == [0]
    said = next(line for line in capfd.readouterr().out.splitlines() if line.startswith(str(best)))
    assert_error(said, best, DAMAGES[damage], "best epoch", "left")
    result = assert_named(tmp_path / "r/a")
    assert result["best"]["epoch"] > unbroken[1]["best"]["epoch"]
    assert result["weights"]["test"] == result["weights"]["best"]
    assert result["weights"]["last"] == unbroken[1]["weights"]["last"]


def test_one_that_is_lost_as_the_training_ends_is_told_and_the_last_weights_are_tested(tmp_path, monkeypatch, capsys):
    best = tmp_path / "r/a/checkpoints/best.ckpt"

    def lose_and_read(*arguments):
        remove(best)
        return read_tested(*arguments)

    monkeypatch.setattr(rank, "read_tested", lose_and_read)
    result = fit(load_run(tmp_path, *WORDS))
    said = capsys.readouterr().out.splitlines()
    assert_error(next(line for line in said if line.startswith(str(best))), best, DAMAGES[remove], "last epoch")
    assert result["best"]["epoch"] < 6
    assert result["weights"]["test"] == result["weights"]["last"]
    assert measured(best.with_name("last.ckpt"), "test") == pytest.approx((result["test"]["loss"], result["test"]["accuracy"]))
    assert_error(result["summary"], "test accuracy", "epoch 6", f"epoch {result['best']['epoch']} by val/loss", "lost")


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_that_is_lost_before_the_test_is_told_and_the_last_weights_are_tested(tmp_path, unbroken, capfd, damage):
    run = load_run(tmp_path, *WORDS)
    kill_run(run, 1, Classifier, "test_step")
    best = tmp_path / "r/a/checkpoints/best.ckpt"
    damage(best)
    assert exit_codes(1, lambda rank: fit(run)) == [0]
    said = capfd.readouterr().out.splitlines()
    assert_error(next(line for line in said if line.startswith(str(best))), best, DAMAGES[damage], "last epoch")
    result = read_result(run)
    before = unbroken[1]
    assert result["weights"] == before["weights"] | {"test": before["weights"]["last"]}
    assert (result["best"], result["last"]) == (before["best"], before["last"]) or result["best"]["epoch"] == before["best"][
        "epoch"
    ]
    assert measured(best.with_name("last.ckpt"), "test") == pytest.approx((result["test"]["loss"], result["test"]["accuracy"]))
    assert_error(result["summary"], "test accuracy", "epoch 6", f"epoch {before['best']['epoch']} by val/loss", "lost")


@pytest.mark.slow
def test_weights_that_the_last_checkpoint_has_too_are_not_lost(tmp_path, capfd):
    run = load_run(tmp_path, *WORDS, "epochs=1")
    kill_run(run, 1, Classifier, "test_step")
    (tmp_path / "r/a/checkpoints/best.ckpt").unlink()
    assert exit_codes(1, lambda rank: fit(run)) == [0]
    assert "best.ckpt" not in capfd.readouterr().out
    result = read_result(run)
    assert result["weights"]["test"] == result["weights"]["last"]
    assert "best epoch 1 by val/loss" in result["summary"]


@pytest.mark.slow
def test_a_best_checkpoint_that_is_ahead_of_the_last_one_is_no_loss(tmp_path, unbroken, capfd):
    """Killed as soon as the best epoch is saved: it is trained again, and saved again."""
    run = load_run(tmp_path, *WORDS)

    def work(rank: int) -> None:
        def write_and_die(checkpoint, path):
            write(checkpoint, path)
            if path.name == "best.ckpt" and checkpoint["global_step"] == unbroken[1]["best"]["step"]:
                kill_this_process()

        write = imgrec.training.checkpoint.write_checkpoint
        imgrec.training.checkpoint.write_checkpoint = write_and_die
        fit(run, quiet=True)

    assert exit_codes(1, work) == [-9]
    assert exit_codes(1, lambda rank: fit(run)) == [0]
    assert "best.ckpt" not in capfd.readouterr().out
    assert_same(read_outcome(tmp_path / "r/a"), unbroken[0])
    assert read_result(run)["weights"] == unbroken[1]["weights"]
