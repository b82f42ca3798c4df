"""A run that was killed anywhere and started again equals the unbroken run, bit for bit: weights, optimizer, average, curves, decisions."""

import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import pytest
import torch
from damaged_content import DAMAGES
from error_parts import assert_error, assert_refused, raises_error
from marks import slow_but
from processes import exit_codes
from resumed_runs import (
    STEPS_PER_EPOCH,
    assert_same,
    finish_run,
    hang_over_sample,
    kill_run,
    kill_this_process,
    kill_worker_at_sample,
    load_run,
    patch_call,
    read_curves,
    read_outcome,
)

import imgrec.training.checkpoint
from imgrec import config
from imgrec.data.in_memory import InMemoryImages
from imgrec.errors import CheckpointError, Stopped
from imgrec.inference.checkpoint import FORMAT_VERSION, read_checkpoint
from imgrec.train import fit
from imgrec.training.callbacks.history import History
from imgrec.training.module import Classifier
from imgrec.training.step_boundary import StepBoundary


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict:
    return finish_run(load_run(tmp_path_factory.mktemp("unbroken")))


# Each is the last thing that the process does: a call of a method, counted from 1.
MOMENTS = {
    "in the first step": (1, Classifier, "training_step"),
    "between two micro-batches of a step": (2 * STEPS_PER_EPOCH + 4, Classifier, "training_step"),
    "before an update in the middle of an epoch": (STEPS_PER_EPOCH + 3, StepBoundary, "on_before_optimizer_step"),
    "before the last update of an epoch": (STEPS_PER_EPOCH, StepBoundary, "on_before_optimizer_step"),
    "inside validation": (2, Classifier, "validation_step"),
    "at the end of an epoch": (2, History, "on_train_epoch_end"),
    "after the last step": (1, StepBoundary, "on_train_end"),
    "in the test": (1, Classifier, "test_step"),
}


@pytest.mark.parametrize("moment", slow_but("between two micro-batches of a step", among=MOMENTS))
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, unbroken, moment):
    run = load_run(tmp_path, "trainer.save_every_steps=1")
    kill_run(run, *MOMENTS[moment])
    assert_same(finish_run(run), unbroken)


@pytest.mark.slow
def test_killed_in_the_first_save(tmp_path, unbroken):
    """What it had logged until then is not there twice."""
    run = load_run(tmp_path, "trainer.save_every_steps=2")
    kill_run(run, 1, imgrec.training.checkpoint, "write_checkpoint")
    assert not (tmp_path / "r/a/checkpoints/last.ckpt").exists()
    assert read_curves(tmp_path / "r/a/tensorboard")["train/step_loss"]
    assert_same(finish_run(run), unbroken)


@pytest.mark.slow
def test_a_run_is_killed_again_and_again(tmp_path, unbroken):
    """Each time a little later, with two loader processes and saves that are some steps old."""
    run = load_run(tmp_path, "trainer.save_every_steps=2", "num_workers=2")
    for steps in (3, 4, 5):
        kill_run(run, steps, StepBoundary, "on_before_optimizer_step")
    assert_same(finish_run(run), unbroken)


@pytest.mark.slow
def test_killed_inside_a_checkpoint_write(tmp_path, unbroken):
    run = load_run(tmp_path, "trainer.save_every_steps=1")

    def half_a_file(checkpoint, file):
        if checkpoint["global_step"] == 6:
            file.write(b"PK")
            file.flush()
            kill_this_process()
        save(checkpoint, file)

    def work(rank: int) -> None:
        torch.save = half_a_file
        fit(run, quiet=True)

    save = torch.save
    assert exit_codes(1, work) == [-signal.SIGKILL]
    checkpoints = tmp_path / "r/a/checkpoints"
    assert [read_checkpoint(checkpoints / name)["global_step"] for name in ("previous.ckpt", "last.ckpt")] == [4, 5]
    assert (checkpoints / "last.ckpt.unfinished").exists()
    assert_same(finish_run(run), unbroken)
    assert not list(checkpoints.glob("*.unfinished"))


@pytest.mark.parametrize("damage", slow_but("a flipped bit", among=["cut short", "a flipped bit", "gone"]))
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, unbroken, capfd, damage):
    run = load_run(tmp_path, "trainer.save_every_steps=1")

    def work(rank: int) -> None:
        patch_call(
            7, StepBoundary, "on_before_optimizer_step", lambda boundary, *_: (boundary.writer.wait(), kill_this_process())
        )
        fit(run, quiet=True)

    assert exit_codes(1, work) == [-signal.SIGKILL]
    last = tmp_path / "r/a/checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "cut short":
        del content[len(content) // 2 :]
    else:  # in the middle of the largest tensor
        with zipfile.ZipFile(last) as records:
            largest = records.read(max(records.infolist(), key=lambda record: record.file_size))
        content[content.index(largest) + len(largest) // 2] ^= 1
    last.write_bytes(content)
    if damage == "gone":
        last.unlink()
    assert exit_codes(1, lambda rank: fit(run)) == [0]
    said = " ".join(capfd.readouterr().out.split())
    assert {
        "cut short": f"{last} ({len(content):,} bytes) is truncated",
        "a flipped bit": "the checksum of its record",
        "gone": "previous.ckpt",
    }[damage] in said
    assert "from step 5 (previous.ckpt), stopped on" in said
    assert_same(read_outcome(tmp_path / "r/a"), unbroken)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfinished")
    stopped(load_run(folder, "trainer.save_every_steps=1"), 3, StepBoundary, "on_before_optimizer_step")
    return folder


PARTS = ("pytorch-lightning_version", "lr_schedulers", "optimizer_states", "callbacks", "loops", "resume", "global_step", "epoch")


@pytest.mark.parametrize("key", slow_but("callbacks", among=[*PARTS, "position", "ranks", "events", "stage", "done", "step"]))
@pytest.mark.parametrize("change", slow_but(b"bytes", "gone", among=(None, b"bytes", -1, 2.5, "gone")))
def test_a_checkpoint_with_a_part_of_another_type_is_refused(unfinished, tmp_path, key, change):
    """Where it is missing too, as Lightning would resume without it and say nothing."""
    shutil.copytree(unfinished, tmp_path / "copy")
    file = tmp_path / "copy/r/a/checkpoints/last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    resume = checkpoint["resume"]
    node = next(node for node in (checkpoint, resume, resume["position"]) if key in node)
    node[key] = change
    if change == "gone":
        del node[key]
    torch.save(checkpoint, file)
    with raises_error(CheckpointError, file, "cannot be resumed", "resume=false"):
        fit(load_run(tmp_path / "copy", "trainer.save_every_steps=1"), quiet=True)


@pytest.mark.parametrize("damage", slow_but("momentum small", among=DAMAGES))
def test_a_checkpoint_whose_content_does_not_fit_is_refused(unfinished, tmp_path, damage):
    shutil.copytree(unfinished, tmp_path / "copy")
    file = tmp_path / "copy/r/a/checkpoints/last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    DAMAGES[damage](checkpoint)
    torch.save(checkpoint, file)
    with raises_error(CheckpointError, file):
        fit(load_run(tmp_path / "copy", "trainer.save_every_steps=1"), quiet=True)


@pytest.mark.slow
def test_without_a_whole_checkpoint_nothing_is_trained_over_what_is_there(tmp_path):
    run = load_run(tmp_path, "trainer.save_every_steps=1")
    assert "at step 3 " in stopped(run, 3, StepBoundary, "on_before_optimizer_step")
    checkpoints = tmp_path / "r/a/checkpoints"
    with (checkpoints / "previous.ckpt").open("r+b") as file:
        file.truncate(3000)
    last = torch.load(checkpoints / "last.ckpt", weights_only=True)
    torch.save(last | {"imgrec": last["imgrec"] | {"version": FORMAT_VERSION + 1}}, checkpoints / "last.ckpt")
    with raises_error(CheckpointError, checkpoints / "last.ckpt", f"format {FORMAT_VERSION + 1}", f"format {FORMAT_VERSION}"):
        fit(run, quiet=True)
    (checkpoints / "last.ckpt").unlink()
    (checkpoints / "best.ckpt").write_bytes(b"")
    with raises_error(
        CheckpointError,
        checkpoints / "previous.ckpt",
        "3,000 bytes",
        "truncated",
        "resume=false",
        f"weights={checkpoints}/best.ckpt",
    ):
        fit(run, quiet=True)


@pytest.mark.slow
def test_a_run_that_lost_both_starts_again_and_says_so(tmp_path, unbroken, capfd):
    run = load_run(tmp_path, "trainer.save_every_steps=1")
    assert "at step 6 " in stopped(run, STEPS_PER_EPOCH + 2, StepBoundary, "on_before_optimizer_step")
    checkpoints = tmp_path / "r/a/checkpoints"
    for name in ("last.ckpt", "previous.ckpt"):
        (checkpoints / name).unlink()
    assert exit_codes(1, lambda rank: fit(run)) == [0]
    said = next(line for line in capfd.readouterr().out.splitlines() if line.startswith(str(checkpoints)))
    assert_error(said, checkpoints, "last.ckpt", "previous.ckpt", "first epoch")
    assert_same(read_outcome(tmp_path / "r/a"), unbroken)


@pytest.mark.slow
def test_early_stopping_counts_on(tmp_path):
    """At this rate no epoch is better than the first: the run ends after the third of six, also where it was killed in the third, or after it."""
    words = ("epochs=6", "optim.lr=1e-12", "model.norm=none", "callbacks.ema.decay=0.0", "monitor=val/accuracy")
    whole = finish_run(load_run(tmp_path / "whole", *words))
    assert [row["epoch"] for row in whole["rows"]] == ["1", "2", "3"]
    run = load_run(tmp_path / "parts", *words, "trainer.save_every_steps=1")
    kill_run(run, 2 * STEPS_PER_EPOCH + 2, StepBoundary, "on_before_optimizer_step")
    kill_run(run, 1, Classifier, "test_step")
    assert_same(finish_run(run), whole)


@pytest.mark.slow
def test_a_rate_that_falls_on_a_plateau_falls_at_the_same_epoch(tmp_path):
    words = (
        "epochs=4",
        "scheduler=plateau",
        "scheduler.patience_epochs=0",
        "scheduler.warmup_share=0",
        "optim.lr=1e-12",
        "model.norm=none",
        "callbacks.early_stopping.patience=0",
        "monitor=val/accuracy",
    )
    whole = finish_run(load_run(tmp_path / "whole", *words))
    assert len({row["lr"] for row in whole["rows"]}) == 3  # it falls after the second epoch, and after the third
    run = load_run(tmp_path / "parts", *words, "trainer.save_every_steps=1")
    for steps in (STEPS_PER_EPOCH + 3, STEPS_PER_EPOCH + 2):
        kill_run(run, steps, StepBoundary, "on_before_optimizer_step")
    assert_same(finish_run(run), whole)


# Stopping


def stopped(
    run: config.RunConfig, count: int, where: type, name: str, then=lambda *_: os.kill(os.getpid(), signal.SIGTERM)
) -> str:
    """What a run says that is asked to stop at the count-th call of a method."""
    said = Path(run.runs_dir) / "said"

    def work(rank: int) -> None:
        patch_call(count, where, name, then)
        with pytest.raises(Stopped) as stop:
            fit(run, quiet=True)
        said.write_text(str(stop.value))

    assert exit_codes(1, work) == [0]
    return said.read_text()


STOPS = {
    "in the first step": (1, Classifier, "training_step", 1, 1),
    "between two micro-batches of a step": (2 * STEPS_PER_EPOCH + 4, Classifier, "training_step", 6, 2),
    "in the last step of an epoch": (STEPS_PER_EPOCH, StepBoundary, "on_before_optimizer_step", STEPS_PER_EPOCH, 1),
    "while a batch is read": (STEPS_PER_EPOCH + 1, InMemoryImages, "__getitem__", 2, 1),
    "at the end of an epoch": (1, History, "on_train_epoch_end", STEPS_PER_EPOCH, 2),
}


@pytest.mark.parametrize("moment", slow_but("while a batch is read", among=STOPS))
def test_a_stopped_run_is_saved_at_that_step_and_goes_on(tmp_path, unbroken, moment):
    run = load_run(tmp_path)
    count, where, name, step, epoch = STOPS[moment]
    said = stopped(run, count, where, name)
    assert_error(said, "stopped by SIGTERM", f"step {step}", f"epoch {epoch} of 3", "saved", "same command")
    assert read_checkpoint(tmp_path / "r/a/checkpoints/last.ckpt")["global_step"] == step
    assert_same(finish_run(run), unbroken)


@pytest.mark.slow
def test_a_stop_in_validation_repeats_the_validation_alone(tmp_path, unbroken):
    """Its six images come in two batches; the average of the weights stands in for them meanwhile."""
    run = load_run(tmp_path)
    said = stopped(run, 3, Classifier, "validation_step")
    assert_error(said, "stopped by SIGTERM", "step 8", "epoch 2 of 3", "saved", "same command")
    position = {"epoch": 1, "done": STEPS_PER_EPOCH, "stage": "validate", "step": 2 * STEPS_PER_EPOCH}
    assert read_checkpoint(tmp_path / "r/a/checkpoints/last.ckpt")["resume"]["position"] == position
    assert_same(finish_run(run), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [3, 0.8])
def test_epochs_that_are_cut_short_by_a_limit_resume_too(tmp_path, limit):
    words = (f"trainer.limit_train_batches={limit}",)
    whole = finish_run(load_run(tmp_path / "whole", *words))
    run = load_run(tmp_path / "parts", *words)
    assert "at step 2 (epoch 1 of 3)" in stopped(run, 2, StepBoundary, "on_before_optimizer_step")
    assert "at step 3 (epoch 1 of 3)" in stopped(run, 1, Classifier, "validation_step")
    assert_same(finish_run(run), whole)


@pytest.mark.slow
def test_a_stop_in_the_test_repeats_the_test_alone(tmp_path, unbroken):
    run = load_run(tmp_path)
    said = stopped(run, 1, Classifier, "test_step")
    assert_error(said, "stopped by SIGTERM", "test", "saved", "same command")
    assert_same(finish_run(run), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sample", "trained"), slow_but((11, 3), among=[(6, 1), (11, 3)]), ids=["before a step", "within a step"]
)
def test_a_stop_while_a_loader_process_hangs_saves_the_step_before(tmp_path, unbroken, sample, trained):
    """The worker hangs over this sample of the epoch's order, and asks for the stop when that many micro-batches have begun."""
    run = load_run(tmp_path, "num_workers=1")

    def work(rank: int) -> None:
        hang_over_sample(run, sample, trained)
        with raises_error(Stopped, "stopped by SIGTERM", "waiting for data of step 2 (epoch 1)", "same command"):
            fit(run, quiet=True)

    assert exit_codes(1, work) == [0]
    assert read_checkpoint(tmp_path / "r/a/checkpoints/last.ckpt")["global_step"] == 1
    assert_same(finish_run(run), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("position", [0, 11, 22])
def test_a_loader_process_that_is_killed_ends_the_run_with_a_save(tmp_path, unbroken, position):
    run = load_run(tmp_path, "num_workers=2")

    def work(rank: int) -> None:
        kill_worker_at_sample(run, position)
        with raises_error(Stopped, "stopped by the loss of loader worker", "killed by SIGKILL", "saved", "same command"):
            fit(run, quiet=True)

    assert exit_codes(1, work) == [0]
    assert_same(finish_run(run), unbroken)


def test_the_second_ctrl_c_ends_at_once(tmp_path, capfd):
    run = load_run(tmp_path)

    def twice(*_) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    def work(rank: int) -> None:
        patch_call(2, Classifier, "training_step", twice)
        fit(run, quiet=True)

    assert exit_codes(1, work) == [130]
    assert_refused(capfd.readouterr().err.removeprefix("\n"), "interrupted", "same command", "last checkpoint")


@pytest.mark.slow
def test_a_time_budget_stops_each_start_anew(tmp_path, unbroken):
    run = load_run(tmp_path, "trainer.max_minutes=0.001")
    said = stopped(run, 4, Classifier, "training_step", lambda *_: time.sleep(0.1))
    assert_error(said, "stopped by the time budget", "0.001 minutes", "epoch 1 of 3", "saved", "same command")
    assert_same(finish_run(load_run(tmp_path)), unbroken)


# Errors


def failed(run: config.RunConfig, count: int, where: type, name: str) -> None:
    def fail(*_) -> None:
        raise RuntimeError("out of memory")

    def work(rank: int) -> None:
        patch_call(count, where, name, fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            fit(run, quiet=True)

    assert exit_codes(1, work) == [0]


FAILURES = {
    "in the second micro-batch of a step": (6, Classifier, "training_step", 2),
    "in backward": (6, Classifier, "on_before_backward", 2),
    "while a batch is read": (7, InMemoryImages, "__getitem__", 3),
    "inside validation": (4, Classifier, "validation_step", 2 * STEPS_PER_EPOCH),
}


@pytest.mark.parametrize("moment", slow_but("in backward", among=FAILURES))
def test_an_error_saves_what_the_failed_step_had_not_changed(tmp_path, unbroken, moment):
    run = load_run(tmp_path)
    count, where, name, step = FAILURES[moment]
    failed(run, count, where, name)
    assert read_checkpoint(tmp_path / "r/a/checkpoints/last.ckpt")["global_step"] == step
    assert_same(finish_run(run), unbroken)


def test_an_error_that_cannot_be_saved_is_still_the_one_that_is_raised(tmp_path, capfd):
    run = load_run(tmp_path)

    def refuse(*_) -> None:
        raise CheckpointError("the disk is full.")

    def fail(*_) -> None:
        raise RuntimeError("out of memory")

    def work(rank: int) -> None:
        imgrec.training.checkpoint.write_checkpoint = refuse
        patch_call(6, Classifier, "training_step", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            fit(run)

    assert exit_codes(1, work) == [0]
    assert "not saved: the disk is full." in capfd.readouterr().out
