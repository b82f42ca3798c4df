"""distill.teacher=RUN: the loss against closed forms, and runs that learn from a teacher."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from error_parts import assert_error, raises_error
from hypothesis import given
from hypothesis import strategies as st
from image_files import picture
from processes import exit_codes
from resumed_runs import assert_same, finish_run, kill_run, load_run
from small_run import SMALL
from torch import Tensor
from torchvision.transforms.v2 import functional as VF
from untrained_run import save_untrained_run

import imgrec
from imgrec import config
from imgrec.config.schema import RunConfig, Split
from imgrec.config.start_checks import check_start
from imgrec.data.preprocess import Preprocess
from imgrec.errors import CheckpointError, ConfigError, DataError
from imgrec.inference.checkpoint import load_checkpoint, read_checkpoint, weights_hash
from imgrec.models.losses import distillation
from imgrec.train import fit
from imgrec.training.distill import Teacher, read_teacher
from imgrec.training.module import Classifier
from imgrec.training.resume_point import ResumePoint

FAKE = ("class_0", "class_1", "class_2")


def drawn(seed: int, size: tuple[int, ...] = (8, 5)) -> Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


# The loss


@given(st.floats(0.5, 20), st.integers(0, 99))
def test_it_is_the_cross_entropy_with_the_teacher_less_its_entropy(temperature: float, seed: int) -> None:
    logits, teacher = drawn(seed).double(), drawn(seed + 100).double()
    targets = (teacher / temperature).softmax(dim=1)
    entropy = -(targets * targets.log()).sum(dim=1)
    expected = temperature**2 * (F.cross_entropy(logits / temperature, targets, reduction="none") - entropy)
    torch.testing.assert_close(distillation(logits, teacher, temperature), expected.float(), rtol=1e-4, atol=1e-4)


def test_at_a_high_temperature_it_is_half_the_mean_squared_difference_of_centred_logits() -> None:
    """Hinton 2015, section 2.1."""
    logits, teacher = (scores - scores.mean(1, keepdim=True) for scores in (drawn(0), drawn(1)))
    torch.testing.assert_close(
        distillation(logits, teacher, 300.0), (logits - teacher).square().mean(1) / 2, rtol=0.02, atol=0.01
    )


def test_it_is_0_with_the_teacher_s_own_logits_and_gives_the_teacher_no_gradient() -> None:
    logits = drawn(0).requires_grad_()
    distillation(logits, logits.detach() + 7, 4.0).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-5)


# Runs


@pytest.mark.slow
@pytest.mark.parametrize("key", ["distill.teacher", "weights"])
def test_a_network_that_has_seen_images_of_the_test_is_said_to(tmp_path: Path, key: str) -> None:
    for name in ("cat", "dog"):
        (tmp_path / f"photos/{name}").mkdir(parents=True)
        for number in range(20):
            picture(number + 20 * (name == "dog")).save(tmp_path / f"photos/{name}/{number}.png")
    words = [
        "data=imagefolder",
        f"data.root={tmp_path}/photos",
        "data.image_size=16",
        "data.num_classes=null",
        "callbacks.pictures=null",
    ]
    small = [word for word in SMALL if not word.startswith("data")]

    def log(split_seed: int, *more: str) -> tuple[str, dict[Split, set[bytes]]]:
        run = config.load(
            "train", [*small, *words, f"runs_dir={tmp_path}/runs", "name=r", f"data.split_seed={split_seed}", *more]
        )
        folder = fit(run, quiet=True).folder
        record = load_checkpoint(folder).record()
        assert record is not None
        return (folder / "log.txt").read_text(), {split: set(part.names.tolist()) for split, part in record.splits.items()}

    _, teacher = log(0, "id=teacher")
    with patch.object(Classifier, "set_network_from_images") as set_from_images:
        said, student = log(1, "id=student", f"{key}={tmp_path}/runs/r/teacher")
    assert set_from_images.called == (key == "distill.teacher")  # whatever the start screen says
    for split in ("val", "test"):
        seen = len(teacher["train"] & student[split])
        assert seen
        assert f"{seen} of the {len(student[split])} {split} images" in " ".join(said.split())
    assert "too good" not in log(0, "id=same", f"{key}={tmp_path}/runs/r/teacher")[0]


def teacher_run(folder: Path, *words: str, classes: tuple[str, ...] = FAKE) -> Path:
    return save_untrained_run(folder, "data=fake", "data.image_size=16", *words, classes=classes, seed=7)


def load(folder: Path, *words: str) -> RunConfig:
    return config.load("train", [*SMALL, f"runs_dir={folder}/runs", "name=r", *words])


def trained(run: RunConfig) -> dict[str, Any]:
    fit(run, quiet=True)
    return read_checkpoint(Path(run.runs_dir) / f"r/{run.id}/checkpoints/last.ckpt")


def test_with_alpha_0_it_learns_what_it_learns_without_a_teacher(tmp_path: Path) -> None:
    folder = teacher_run(tmp_path / "teacher")
    plain = trained(load(tmp_path, "id=plain"))
    labels = trained(load(tmp_path, "id=labels", f"distill.teacher={folder}", "distill.alpha=0"))
    assert_same(labels["state_dict"], plain["state_dict"])
    before = weights_hash(read_checkpoint(folder))
    assert labels["imgrec"]["teacher"] == {"file": str(folder / "checkpoints/best.ckpt"), "weights": before}
    assert "teacher" not in plain["imgrec"]


@pytest.mark.slow
def test_a_student_needs_its_teacher_no_more(tmp_path: Path) -> None:
    folder = teacher_run(tmp_path / "teacher")
    before = read_checkpoint(folder)
    plain, taught = (
        trained(load(tmp_path, f"id={alpha}", f"distill.teacher={folder}", f"distill.alpha={alpha}")) for alpha in (0, 1)
    )
    assert_same(read_checkpoint(folder)["state_dict"], before["state_dict"])
    assert taught["state_dict"].keys() == plain["state_dict"].keys()
    assert any(not torch.equal(taught["state_dict"][key], plain["state_dict"][key]) for key in plain["state_dict"])
    (folder / "checkpoints/best.ckpt").unlink()
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert imgrec.load(tmp_path / "runs/r/1", device="cpu").probabilities(images).shape == (2, 3)


def made(folder: Path, classes: tuple[str, ...], *words: str) -> Teacher:
    teacher = read_teacher(load(folder, f"distill.teacher={folder / 'teacher'}", *words), classes)
    assert teacher is not None
    return teacher


@pytest.mark.parametrize("of_teacher", [("data.image_size=24", "data.mean=[0.2]", "data.std=[0.7]", "data.channels=1"), ()])
def test_it_answers_for_the_student_s_images_in_its_own_form_and_the_student_s_classes(
    tmp_path: Path, of_teacher: tuple[str, ...]
) -> None:
    folder = save_untrained_run(
        tmp_path / "teacher", "data=fake", "data.image_size=16", "data.channels=1", "data.mean=[0.5]", "data.std=[0.25]",
        *of_teacher, classes=("class_2", "other", "class_0", "class_1"),
    )  # fmt: skip
    checkpoint = load_checkpoint(folder)
    net, steps = checkpoint.network().eval(), checkpoint.preprocessing
    seen = Preprocess(image_size=16, mean=[0.5], std=[0.25], interpolation="bilinear")
    pixels = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    teacher = made(tmp_path, FAKE, "data.channels=1", "data.mean=[0.5]", "data.std=[0.25]")
    found = teacher.logits(seen.normalize(pixels), seen)
    side, (mean,), (std,) = steps["image_size"], steps["mean"], steps["std"]
    expected = net((VF.resize(pixels, [side, side]) - mean) / std)[:, [2, 3, 0]]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


def test_the_gradient_is_the_student_s_alone(tmp_path: Path) -> None:
    teacher_run(tmp_path / "teacher")
    teacher = made(tmp_path, FAKE)
    seen = teacher.preprocess
    logits = drawn(3, (4, 3)).requires_grad_()
    images = torch.rand(4, 3, 16, 16).requires_grad_()
    teacher.blend(
        F.cross_entropy(logits, torch.zeros(4, dtype=torch.int64), reduction="none"), logits, images, seen
    ).sum().backward()
    assert logits.grad is not None
    assert images.grad is None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.net.parameters())
    assert not any(module.training for module in teacher.net.modules())


def test_what_cannot_teach(tmp_path: Path) -> None:
    folder = teacher_run(tmp_path / "teacher", classes=("class_0", "class_1", "cat"))
    given = f"distill.teacher={folder}"
    with raises_error(DataError, given, "3 classes", "class_2", "distill.teacher=RUN"):
        read_teacher(load(tmp_path, given), FAKE)
    gray = teacher_run(tmp_path / "gray", "data.channels=1", "data.mean=[0.5]", "data.std=[0.2]")
    with raises_error(ConfigError, f"distill.teacher={gray}", "data.channels=3", "data.channels=1"):
        read_teacher(load(tmp_path, f"distill.teacher={gray}"), FAKE)
    right = teacher_run(tmp_path / "right")
    with raises_error(ConfigError, "loss=BCE", "loss=cross_entropy"):
        read_teacher(load(tmp_path, f"distill.teacher={right}", "loss=bce"), FAKE)
    for words, parts in (
        (("distill.alpha=0.1",), ("distill.alpha=0.1", "distill.teacher=RUN_DIRECTORY", "distill.alpha")),
        ((f"distill.teacher={right}", "distill.alpha=1.5"), ("distill.alpha=1.5", "1")),
    ):
        with raises_error(ConfigError, *parts):
            load(tmp_path, *words)
    several = tmp_path / "several"
    (several / "1/checkpoints").mkdir(parents=True)
    (several / "1/config.yaml").touch()
    with pytest.raises(CheckpointError) as caught:
        read_teacher(load(tmp_path, f"distill.teacher={several}/"), FAKE)
    assert_error(str(caught.value), f"distill.teacher={several}/", "checkpoints/best.ckpt", "1 run", f"Type {several}/1 instead.")
    (exported := tmp_path / "model.onnx").touch()
    with pytest.raises(CheckpointError) as caught:
        read_teacher(load(tmp_path, f"distill.teacher={exported}"), FAKE)
    assert str(caught.value).startswith(f"distill.teacher={exported}: it is an exported file; a checkpoint is needed.")
    with raises_error(CheckpointError, "distill.teacher=none", "no such file or folder", "runs/NAME/ID"):
        check_start(load(tmp_path, "distill.teacher=none"))


def test_a_resumed_run_has_the_same_teacher(tmp_path: Path) -> None:
    folder = teacher_run(tmp_path / "teacher")
    run, weights = load(tmp_path, f"distill.teacher={folder}"), weights_hash(read_checkpoint(folder))
    point = ResumePoint(tmp_path, {}, lost_best=False, saved_at=0.0, epochs=1, teacher=weights)
    assert read_teacher(run, FAKE, point) is not None
    with raises_error(CheckpointError, f"distill.teacher={folder}", weights[:12], "0123456789ab", "resume=false"):
        read_teacher(run, FAKE, replace(point, teacher="0123456789abcdef"))


def everything(folder: Path, *words: str) -> RunConfig:
    """Mixing, accumulation, an average, batch norm, and a teacher of other images."""
    return load_run(folder, f"distill.teacher={folder}/teacher", "trainer.save_every_steps=1", "logger=none", *words)


@pytest.mark.slow
def test_a_killed_run_resumes_with_it_bit_for_bit(tmp_path: Path) -> None:
    teacher_run(tmp_path / "teacher", "data.image_size=20")
    run, again = everything(tmp_path), everything(tmp_path, f"runs_dir={tmp_path}/again")
    unbroken = finish_run(again)
    kill_run(run, 9, Classifier, "training_step")
    assert_same(finish_run(run), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["changed", "gone"])
def test_a_run_resumes_with_no_other_teacher(tmp_path: Path, case: str) -> None:
    folder = teacher_run(tmp_path / "teacher")
    run = load(tmp_path, "id=a", f"distill.teacher={folder}")
    trained(run)
    (tmp_path / "runs/r/a/result.json").unlink()
    if case == "gone":
        (folder / "checkpoints/best.ckpt").rename(tmp_path / "moved.ckpt")
        parts = (f"distill.teacher={folder}", "best.ckpt")
    else:
        save_untrained_run(folder, "data=fake", "data.image_size=16", classes=FAKE, seed=8)
        parts = (f"distill.teacher={folder}", "weights", "resume=false")
    with raises_error(CheckpointError, *parts):
        fit(run, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_from_it_what_one_does(tmp_path: Path, strategy: str) -> None:
    teacher_run(tmp_path / "teacher", "data.image_size=20")
    words = (f"distill.teacher={tmp_path}/teacher", "augment=none", "model=lenet")
    alone = trained(load(tmp_path, "id=alone", *words))
    two = load(tmp_path, "id=two", *words, f"trainer.strategy={strategy}", "trainer.devices=auto")
    assert exit_codes(2, lambda rank: fit(two, quiet=True)) == [0, 0]
    found = read_checkpoint(tmp_path / "runs/r/two/checkpoints/last.ckpt")
    torch.testing.assert_close(found["state_dict"], alone["state_dict"])
