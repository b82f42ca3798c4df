"""A training whose memory ends goes on with half of the images at once, like one that had that number from there on."""

import json
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from error_parts import assert_error, raises_error
from marks import slow_but
from processes import exit_codes, run_command
from resumed_runs import assert_same, finish_run, kill_run, load_run, read_outcome
from small_run import SMALL

from imgrec import config
from imgrec.config.schema import RunConfig, run_config
from imgrec.data.sampler import plan_batches
from imgrec.distributed.command import run_command as run_named
from imgrec.distributed.world import RUN_DIR_VARIABLE, World
from imgrec.errors import ConfigError, ExitCode, OutOfMemory
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.inference.device import is_out_of_memory
from imgrec.models.lenet import LeNet
from imgrec.train import fit
from imgrec.training import out_of_memory
from imgrec.training.device_batches import DeviceBatches
from imgrec.training.module import Classifier
from imgrec.training.out_of_memory import free_tensors, halved_where_memory_ends, refused_where_memory_ends
from imgrec.training.step_boundary import StepBoundary

BATCH, BEFORE, AFTER = 12, 6, 3  # batch_size, and max_device_batch before and after
STEP = 3  # of two in an epoch


def memory_ends(method: str, most: int, *, step: int = 0, rank: int = 0, patch: Callable[..., None] = setattr) -> None:
    """In a fork, or with a monkeypatch: from a step on a rank holds no more than `most` images at once, which it notices at the end of a call."""
    whole: Callable[..., Any] = getattr(Classifier, method)

    def limited(self: Classifier, batch: Any, batch_idx: int) -> Any:
        result = whole(self, batch, batch_idx)
        if len(batch.labels) > most and self.trainer.global_step >= step and self.trainer.global_rank == rank:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    patch(Classifier, method, limited)


def finish_in_little_memory(run: RunConfig, *, size: int = 1, **limits: Any) -> dict[str, Any]:
    def work(rank: int) -> None:
        memory_ends("training_step", **limits)
        fit(run, quiet=True)

    assert exit_codes(size, work) == [0] * size
    return read_outcome(Path(run.runs_dir) / "r/a")


@pytest.mark.slow
def test_from_the_step_that_failed_it_equals_a_run_with_half_of_the_images_at_once(tmp_path: Path) -> None:
    run = load_run(tmp_path / "ends", f"batch_size={BATCH}", f"max_device_batch={BEFORE}")
    found = finish_in_little_memory(run, most=AFTER, step=STEP)
    halved = f"runs_dir={tmp_path}/halved", f"batch_size={BATCH}"
    saving = load_run(tmp_path, *halved, f"max_device_batch={BEFORE}", "trainer.save_every_steps=1")
    kill_run(saving, STEP + 1, StepBoundary, "on_before_optimizer_step")
    file = tmp_path / "halved/r/a/config.yaml"  # of a run that is resumed with the other number, as no command does it
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"max_device_batch": AFTER}))
    assert_same(found, finish_run(load_run(tmp_path, *halved, f"max_device_batch={AFTER}")))
    log = (tmp_path / "ends/r/a/log.txt").read_text()
    assert f"saved at step {STEP}." in log
    assert f"The run resumes with max_device_batch={AFTER}, in the same global batch of {BATCH}." in log
    assert f"resuming {tmp_path}/ends/r/a from step {STEP}," in log


def small_run(folder: Path, name: str, *words: str) -> RunConfig:
    return config.load("train", [*SMALL, "callbacks.pictures=null", f"runs_dir={folder}", f"name={name}", "id=a", *words])


def start_here(command: Sequence[str], task: Any, count: int, *, run_dir: Path, **_: Any) -> None:
    """`launch` of one rank, in this process."""
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", RUN_DIR_VARIABLE: str(run_dir)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        fit(run_config(task["run"]), quiet=task["quiet"], command=task["command"])


def test_it_starts_again_in_other_processes_until_one_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr("imgrec.train.launch", lambda *args, **keys: (started.append(args[2]), start_here(*args, **keys)))
    memory_ends("training_step", 0, patch=monkeypatch.setattr)
    with raises_error(ConfigError, "max_device_batch=1", "16 pixels", "data.image_size=8"):
        fit(small_run(tmp_path, "halved"), quiet=True)
    assert started == [1, 1]
    log = (tmp_path / "halved/a/log.txt").read_text()
    for line in ("4 images at once did not fit", "2 images at once did not fit", "global batch 4 = 1 device x 1 x 4"):
        assert line in log


MIXED = ("augment.mixup=0.4",)
RESNET = ("model=resnet20", "data.image_size=4")  # whose batch norm sees one pixel at its end


SMALLER = [
    ((), 8, 8, 4),
    ((), 8, 2, 1),
    ((), 8, 1, None),
    (MIXED, 8, 3, 2),  # of which half is one
    (MIXED, 8, 2, None),
    (MIXED, 9, 5, 3),  # the last three stay together
    (MIXED, 9, 3, None),
    (RESNET, 8, 3, 2),
    (RESNET, 8, 2, None),
    (RESNET, 5, 5, 3),  # in twos one would be left
    (RESNET, 5, 3, None),
    (RESNET, 7, 4, 3),
]


@pytest.mark.parametrize(("words", "batch_size", "before", "expected"), slow_but(SMALLER[3], among=SMALLER))
def test_the_next_smaller_number_is_one_that_the_run_can_have(
    words: Sequence[str], batch_size: int, before: int, expected: int | None, tmp_path: Path
) -> None:
    run = small_run(tmp_path, "r", *words, f"batch_size={batch_size}").with_classes(3)
    assert DeviceBatches(run, samples=10 * batch_size, devices=1).below(before) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (MIXED, ("2 images", "augment.mixup and augment.cutmix", "data.image_size=8", "augment.mixup=0 augment.cutmix=0")),
        (RESNET, ("2 images", "batch norm", "data.image_size=2")),
    ],
)
def test_where_fewer_cannot_be_trained_it_ends_with_what_can_be_done(
    words: Sequence[str], refused: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgrec.train.launch", start_here)
    memory_ends("training_step", 0, patch=monkeypatch.setattr)
    with pytest.raises(ConfigError) as caught:
        fit(small_run(tmp_path, "halved", *words), quiet=True)
    assert_error(str(caught.value), "max_device_batch=2", *refused)
    assert "Set max_device_batch" not in str(caught.value)


@pytest.mark.slow
def test_in_the_first_step_it_equals_a_run_that_began_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(small_run(tmp_path, "typed", "max_device_batch=2"), quiet=True)
    memory_ends("training_step", 2, patch=monkeypatch.setattr)
    fit(small_run(tmp_path, "halved"), quiet=True)
    outcomes = [read_checkpoint(tmp_path / f"{name}/a/checkpoints/last.ckpt") for name in ("typed", "halved")]
    assert_same(*(outcome["state_dict"] for outcome in outcomes))
    assert outcomes[1]["imgrec"]["config"]["max_device_batch"] == 2


class NoMemory(pl.Callback):
    """After a step's weights have changed: nothing is saved."""

    def on_train_batch_end(self, *_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_with_callbacks_of_this_process_it_is_to_be_called_again(tmp_path: Path) -> None:
    with raises_error(OutOfMemory, "4 images", "resumes with max_device_batch=2", "Call fit again"):
        fit(small_run(tmp_path, "halved"), callbacks=[NoMemory()], quiet=True)
    assert json.loads((tmp_path / "halved/a/batch.json").read_text())["max_device_batch"] == 2
    with raises_error(OutOfMemory, "2 images", "resumes with max_device_batch=1"):
        fit(small_run(tmp_path, "halved"), callbacks=[NoMemory()], quiet=True)


def test_the_tensors_of_a_failed_step_are_free_before_it_is_saved() -> None:
    alive = []

    def step() -> None:
        images = torch.zeros(9)
        alive.append(weakref.ref(images))
        raise MemoryError

    def start() -> None:
        try:
            step()
        except MemoryError:
            raise RuntimeError("could not create a primitive")  # noqa: B904  # the step is its context, as in Lightning

    with pytest.raises(RuntimeError) as caught:
        start()
    assert is_out_of_memory(caught.value)
    assert alive[0]() is not None
    free_tensors(caught.value)
    assert alive[0]() is None


def test_what_does_not_fit_before_the_first_step_is_no_matter_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Classifier) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classifier, "on_fit_start", full)
    with pytest.raises(torch.OutOfMemoryError):
        fit(small_run(tmp_path, "weights"), quiet=True)
    assert not (tmp_path / "weights/a/batch.json").exists()


@pytest.mark.slow
def test_validation_is_computed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit(small_run(tmp_path, "whole"), quiet=True)
    forward = LeNet.forward

    def limited(self: LeNet, x: torch.Tensor) -> torch.Tensor:
        if not self.training and len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(LeNet, "forward", limited)
    found = fit(small_run(tmp_path, "parts"), quiet=True)
    assert found["last"]["val/loss"] == pytest.approx(expected["last"]["val/loss"], rel=1e-5)
    assert found["test"]["loss"] == pytest.approx(expected["test"]["loss"], rel=1e-5)
    assert "Evaluation computes 1 at once from now on" in (tmp_path / "parts/a/log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("short", [0, 1])
def test_of_several_ranks_all_end_and_the_same_command_goes_on_with_half(tmp_path: Path, short: int) -> None:
    """As under torchrun; short: the rank whose memory ends."""
    run = load_run(tmp_path, f"batch_size={BATCH}", f"max_device_batch={BEFORE}", "trainer.devices=auto")

    def work(rank: int) -> int:
        memory_ends("training_step", AFTER, rank=short)
        return run_named("train", lambda *_: int(fit(run, quiet=True) is None), [])

    assert exit_codes(2, work) == [ExitCode.REFUSED] * 2
    assert exit_codes(2, work) == [ExitCode.OK] * 2
    typed = load_run(tmp_path / "typed", f"batch_size={BATCH}", f"max_device_batch={AFTER}", "trainer.devices=auto")
    assert_same(read_outcome(tmp_path / "r/a"), finish_run(typed, size=2))


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        (World(), "memory. The run"),
        (World(size=2, started_by="imgrec"), "memory. The run"),
        (World(size=2, started_by="torchrun"), "Start the same command again: The run"),
        (World(size=2, started_by="slurm"), "Submit the same with id=7: The run"),
        (World(started_by="slurm"), "memory. The run"),  # one process goes on by itself
    ],
)
def test_the_line_says_what_is_to_be_done(world: World, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_memory, "read_world", lambda: world)
    plan = plan_batches(batch_size=8, samples=80, devices=world.size, max_device_batch=4)
    (tmp_path / "7").mkdir()
    with (
        raises_error(OutOfMemory, "4 images at once", expected, "max_device_batch=2", "global batch of 8"),
        halved_where_memory_ends(small_run(tmp_path, "r", "batch_size=8"), plan, tmp_path / "7/batch.json", began=lambda: True),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("batch_size", "parts"),
    [(4, ("max_device_batch=4", "max_device_batch=2")), (1, ("max_device_batch=1", "a single image", "data.image_size=8"))],
)
def test_a_command_that_keeps_nothing_says_what_to_set(batch_size: int, parts: tuple[str, ...], tmp_path: Path) -> None:
    plan = plan_batches(batch_size=batch_size, samples=80, devices=1, max_device_batch=batch_size)
    run = small_run(tmp_path, "r", f"batch_size={batch_size}")
    with raises_error(OutOfMemory, *parts), refused_where_memory_ends(run, plan):
        raise torch.OutOfMemoryError("CUDA out of memory")


LITTLE = """
import pytorch_lightning as pl
import torch


class Little(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if len(batch.labels) > 1 and trainer.global_rank == trainer.world_size - 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "batches"),
    [(1, ("1 device x 4 x 1", "1 device x 2 x 2", "1 device x 1 x 4")), (2, ("2 devices x 2 x 1", "2 devices x 1 x 2"))],
)
def test_a_command_starts_its_processes_again(devices: int, batches: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "little.py").write_text(LITTLE)
    (tmp_path / "conf/callbacks").mkdir(parents=True)
    (tmp_path / "conf/callbacks/little.yaml").write_text("defaults: [default, _self_]\nlittle: {_target_: little.Little}\n")
    words = [*SMALL, "callbacks=little", f"runs_dir={tmp_path}", "name=r", "id=a", f"trainer.devices={devices}"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "IMGREC_ALLOW": "little"}
    command = run_command(sys.executable, "-m", "imgrec.train", "--config-dir", tmp_path / "conf", *words, env=environment)
    assert command.returncode == 0, command.stderr
    log = (tmp_path / "r/a/log.txt").read_text()
    for line in ("2 images at once did not fit in the memory.", *batches):
        assert line in log
        assert line in command.stdout
