"""Data that is too little for a number: a sentence before the first step, and no NaN in a result."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from error_parts import assert_refused, raises_error
from marks import slow_but
from small_run import SMALL
from test_data_folder import make

from imgrec import cli, config
from imgrec.config.instantiate import instantiate
from imgrec.config.options import option_names
from imgrec.config.schema import RunConfig
from imgrec.data.datamodule import DataModule, build_data
from imgrec.errors import DataError
from imgrec.inference.metrics import make_report
from imgrec.models.summary import trains_on_one
from imgrec.train import fit
from imgrec.training.module import Classifier

SKIP = ("data.on_bad_image=skip", "data.on_bad_image_eval=skip")
WHOLE = tuple(f"trainer.limit_{split}_batches=1.0" for split in ("train", "val", "test"))
# Its last batch norm sees one pixel of each channel.
ONE_PIXEL = ("model=torchvision", "model.name=resnet18", "data.image_size=32")


def photos(root: Path, unreadable: str) -> Path:
    """Three images of two classes in each split; those whose path in the root matches the pattern cannot be read."""
    for split in ("train", "val", "test"):
        make(root / split, {"a": 3, "b": 3})
    for file in root.glob(unreadable):
        file.write_bytes(b"no image")
    return root


def words(root: Path, *more: str) -> list[str]:
    kept = [word for word in SMALL if not word.startswith("data")]
    return [
        *kept,
        *WHOLE,
        "data=imagefolder",
        "data.image_size=16",
        f"data.root={root}",
        f"runs_dir={root}/runs",
        "id=a",
        *SKIP,
        *more,
    ]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that were trained on."""
    seen: list[int] = []
    step = Classifier.training_step

    def training_step(self: Classifier, batch, batch_idx: int):
        seen.append(len(batch.labels))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    return seen


LOST = {
    f"{split}/{part}": (count, of)
    for split in ("train", "val", "test")
    for part, count, of in (("*/*", 6, f"the {split} split"), ("b/*", 3, "class b"))
}


@pytest.mark.parametrize("unreadable", slow_but("val/*/*", "train/b/*", among=LOST))
def test_a_split_or_class_that_is_empty_after_skipping_is_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: list[int], unreadable: str
) -> None:
    count, of = LOST[unreadable]
    root = photos(tmp_path, unreadable)
    assert cli.main(["train", *words(root)]) == 2
    example = sorted(str(file) for file in root.glob(unreadable))[0]
    assert_refused(capsys.readouterr().err, example, count, of, "Replace")
    assert steps == []
    assert list((root / "runs").iterdir()) == []


def test_one_readable_image_of_each_class_is_enough(tmp_path: Path) -> None:
    root = photos(tmp_path, "*/*/00[01].jpg")
    result = fit(config.load("train", words(root)), quiet=True)
    assert result["test"]["count"] == 2
    assert len(result["left_out"]) == 12
    json.loads((root / "runs/imagefolder_lenet/a/result.json").read_text(), parse_constant=pytest.fail)  # NaN or Infinity


def test_an_epoch_whose_images_were_all_skipped_has_no_figures(tmp_path: Path) -> None:
    """A limit may leave such a part of a split that has others."""
    root = photos(tmp_path, "train/*/00[01].jpg")
    with raises_error(DataError, "data.on_bad_image=skip", "epoch 1", "data.on_bad_image=refuse"):
        for seed in range(20):
            one = ("batch_size=1", "trainer.limit_train_batches=1", f"seed={seed}", f"id={seed}")
            fit(config.load("train", words(root, *one)), quiet=True)
    with raises_error(DataError, "data.on_bad_image_eval=skip", "data.on_bad_image_eval=refuse"):
        make_report(torch.zeros(2, 2, dtype=torch.int64), top5_hits=0, loss=0.0, classes=("a", "b"))


@pytest.mark.parametrize("size", slow_but(32, among=[32, 64]))
@pytest.mark.parametrize("model", slow_but("torchvision", "resnet", among=option_names("model")))
def test_batches_of_one_are_known_to_fail_where_they_do(model: str, size: int) -> None:
    run = config.load("train", ["data=fake", f"model={model}", f"data.image_size={size}"])
    net = instantiate(run.model, num_classes=3)
    expected = True
    try:
        net.train()(torch.rand(1, 3, size, size))
    except ValueError:
        expected = False
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.eval()
    assert trains_on_one(net, channels=3, image_size=size) == expected
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("key", ["on_bad_image", "on_bad_image_eval"])
def test_batches_of_one_are_expected_where_images_of_train_may_be_skipped(tmp_path: Path, key: str) -> None:
    root = photos(tmp_path, "nothing")
    keys = [f"data.{name}={'skip' if name == key else 'refuse'}" for name in ("on_bad_image", "on_bad_image_eval")]
    run = config.load("train", words(root, *ONE_PIXEL, *keys, "batch_size=2"))
    data, augment = build_data(run)
    run = run.with_classes(len(data.classes))
    plan = DataModule(run, data, augment, devices=1).plan
    classifier = Classifier(run, instantiate(run.model, num_classes=2), data, augment, plan)
    assert classifier.least_samples == (2 if key == "on_bad_image" else 1)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (("batch_size=3", "max_device_batch=2"), ("max_device_batch=2", "two images", "at most 2 x 2", "max_device_batch=3")),
        pytest.param(
            ("batch_size=1",), ("batch_size=1", "two images", "1 device x 1 x 1", "batch_size=2"), marks=pytest.mark.slow
        ),
        pytest.param(
            ("batch_size=4", "max_device_batch=1"),
            ("max_device_batch=1", "two images", "1 device x 1 x 4", "max_device_batch=4"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_plan_with_batches_of_one_is_refused_where_batch_norm_fails(
    small: Callable[..., RunConfig],
    capsys: pytest.CaptureFixture[str],
    steps: list[int],
    given: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    run = small()
    assert cli.main(["train", *SMALL, *ONE_PIXEL, *given, f"runs_dir={run.runs_dir}"]) == 2
    assert_refused(capsys.readouterr().err, *parts)
    assert steps == []


@pytest.mark.slow
def test_a_batch_that_skipping_left_one_image_is_left_out(tmp_path: Path, steps: list[int]) -> None:
    root = photos(tmp_path, "train/b/00[01].jpg")
    result = fit(config.load("train", words(root, *ONE_PIXEL, "batch_size=2", "epochs=3", "optim.lr=1e-3")), quiet=True)
    assert 1 in steps
    assert 2 in steps
    assert result["last"]["train/loss"] > 0


def test_a_share_that_is_less_than_a_batch_is_one_batch(small: Callable[..., RunConfig], steps: list[int]) -> None:
    result = fit(small(*(word.replace("1.0", "0.01") for word in WHOLE), "epochs=2"), quiet=True)
    assert steps == [4, 4]
    assert result["test"]["count"] == 6
