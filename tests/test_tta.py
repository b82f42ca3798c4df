"""tta: the mean of the logits of views that torchvision makes, the same for a prediction and a split, and where it is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from error_parts import assert_refused, raises_error
from marks import slow_but
from PIL import Image
from torchvision.transforms.v2 import functional as F
from untrained_run import save_untrained_run

from imgrec import cli
from imgrec.data.decode import decode, fit_to_size
from imgrec.errors import ConfigError
from imgrec.inference.predictor import load

WORDS = (
    "data=imagefolder",
    "data.root=unused",
    "data.channels=1",
    "data.mean=[0.5]",
    "data.std=[0.2]",
    "data.image_size=14",
    "data.resize=crop",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained_run(tmp_path_factory.mktemp("tta"), *WORDS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    for k in range(10):
        (folder / str(k)).mkdir()
        pixels = np.random.default_rng(k).integers(0, 256, (20, 23 + k), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / str(k) / "a.png")
    return [str(folder / str(k) / "a.png") for k in range(10)]


def views_by_torchvision(file: str, tta: str, preprocessing) -> list[torch.Tensor]:
    whole = decode(file, preprocessing)
    if tta == "flip":
        image = fit_to_size(whole, preprocessing)
        return [image, F.horizontal_flip(image)]
    square = F.center_crop(F.resize(whole, [16]), [16, 16])  # 14 / 0.875
    return list(F.five_crop(square, [14, 14]) if tta == "crops" else F.ten_crop(square, [14, 14]))


@pytest.mark.parametrize("tta", slow_but("ten_crops", among=("flip", "crops", "ten_crops")))
def test_probabilities_are_those_of_the_mean_logits_of_torchvisions_views(run, files, tta):
    plain, several = load(run, device="cpu"), load(run, device="cpu", tta=tta)
    logits = []
    for file in files:
        views = torch.stack(views_by_torchvision(file, tta, plain.checkpoint.preprocessing))
        with torch.inference_mode():
            logits.append(plain.logits(views).mean(dim=0))
    expected = torch.stack(logits).softmax(dim=1)
    found = several.predict(files, top_k=10)
    rows = torch.tensor([[dict(each.top)[name] for name in several.classes] for each in found])
    torch.testing.assert_close(rows, expected)
    assert not torch.allclose(
        rows, torch.tensor([[dict(each.top)[name] for name in plain.classes] for each in plain.predict(files, top_k=10)])
    )
    report = several.evaluate(folder=str(Path(files[0]).parents[1]), num_workers=0)
    assert report.log_loss == pytest.approx(-expected.diagonal().log().mean().item(), rel=1e-5)
    assert several.embed(files).shape == plain.embed(files).shape


def test_the_commands_take_it(run, files, tmp_path, capsys):
    folder = Path(files[0]).parents[1]
    words = [f"ckpt={run}", "device=cpu", "num_workers=0", "tta=ten_crops"]
    assert cli.main(["predict", *words, f"files={folder}", f"out={tmp_path}/a.csv"]) == 0
    assert cli.main(["evaluate", *words, f"folder={folder}", f"out={tmp_path}/a.json", "plot=none"]) == 0
    said = capsys.readouterr().out
    assert said.count("tta=ten_crops: the run was trained without mirror images (augment.flip=0)") == 2
    assert '"tta": "ten_crops"' in (tmp_path / "a.json").read_text()
    assert cli.main(["predict", *words, f"files={folder}", f"out={tmp_path}/b.csv", "coverage=0.9"]) == 2
    assert_refused(capsys.readouterr().err, "tta=ten_crops", "coverage=0.9", "Leave tta out")
    assert cli.main(["predict", f"ckpt={run}", f"files={folder}", "tta=crop"]) == 2
    assert_refused(capsys.readouterr().err, "tta=crop", "flip, crops, ten_crops or null")


def test_views_that_would_all_be_the_same_are_refused(tmp_path):
    whole = save_untrained_run(tmp_path / "whole")  # digits, whose crop_share is 1
    with raises_error(ConfigError, "tta=crops", "data.crop_share=1", "tta=flip"):
        load(whole, device="cpu", tta="crops")
    speed = ("data=digits", "model=speed_cnn", "model.widths=[8,8,8]", "data.image_size=16")
    mirrored = save_untrained_run(tmp_path / "mirrored", tiny=speed)
    with raises_error(ConfigError, "tta=flip", "model.flip_in_evaluation=true", "Leave tta out"):
        load(mirrored, device="cpu", tta="flip")
