"""A run that leaves unreadable images out, killed and started again: the curves and the list of images of the unbroken run."""

import json
import re
from pathlib import Path

import pytest
from marks import slow_but
from resumed_runs import EVERYTHING, assert_same, finish_run, kill_run
from test_data_folder import make

from imgrec import config
from imgrec.training.module import Classifier
from imgrec.training.step_boundary import StepBoundary

FAKE = ("data.num_classes", "data.train_samples", "data.test_samples", "data.val_share")
WORDS = [word for word in EVERYTHING if word != "data=fake" and not word.startswith(FAKE)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """22 images to train on in four steps, 6 to validate and 6 to test; one or two of each cannot be read."""
    root: Path = tmp_path_factory.mktemp("photos")
    for split, each in (("train", 11), ("val", 3), ("test", 3)):
        make(root / split, {"a": each, "b": each})
    for name in ("train/a/003.jpg", "train/b/007.jpg", "val/a/001.jpg", "test/b/002.jpg"):
        (root / name).write_bytes(b"no image")
    return root


def load(folder: Path, root: Path, *words: str) -> config.RunConfig:
    skip = (
        "data=imagefolder",
        f"data.root={root}",
        "data.on_bad_image=skip",
        "data.on_bad_image_eval=skip",
        "num_workers=0",
        "callbacks.pictures=null",
    )
    return config.load("train", [*WORDS, *skip, f"runs_dir={folder}", "name=r", "id=a", *words])


def left_out(run: config.RunConfig) -> list[str]:
    return list(json.loads((Path(run.runs_dir) / "r/a/result.json").read_text())["left_out"])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, root: Path) -> dict:
    run = load(tmp_path_factory.mktemp("unbroken"), root)
    outcome = finish_run(run)
    assert left_out(run) == [
        f"{root}/{name}" for name in ("test/b/002.jpg", "train/a/003.jpg", "train/b/007.jpg", "val/a/001.jpg")
    ]
    return outcome | {"left_out": left_out(run)}


MOMENTS = {
    "in the second epoch": (7, StepBoundary, "on_before_optimizer_step"),
    "inside the last validation": (5, Classifier, "validation_step"),
    "in the test": (1, Classifier, "test_step"),
}


@pytest.mark.parametrize("moment", slow_but("in the second epoch", among=MOMENTS))
def test_a_killed_run_has_the_curves_and_the_list_of_the_unbroken_one(tmp_path: Path, root: Path, unbroken: dict, moment: str):
    run = load(tmp_path, root, "trainer.save_every_steps=1")
    kill_run(run, *MOMENTS[moment])
    assert_same(finish_run(run) | {"left_out": left_out(run)}, unbroken)
    log = (tmp_path / "r/a/log.txt").read_text()
    assert len(re.findall("3 images left out that cannot be read", log)) == 1


@pytest.mark.slow
def test_two_processes_list_what_one_does(tmp_path: Path, root: Path, unbroken: dict):
    run = load(tmp_path, root, "trainer.devices=auto", "trainer.save_every_steps=1")
    kill_run(run, 7, StepBoundary, "on_before_optimizer_step", size=2)
    finish_run(run, size=2)
    assert left_out(run) == unbroken["left_out"]
