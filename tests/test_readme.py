"""README's commands and its Python, run as they stand there on a few small images; tests/test_docs.py composes those of all pages."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

import imgrec
from imgrec import cli

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", (Path(__file__).parents[1] / "README.md").read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for kind, block in BLOCKS
    if not kind
    for line in block.splitlines()
    if line.startswith("imgrec ")
]
# Added to each: what makes minutes seconds.
SMALL = {
    "check": ["data.image_size=32", "num_workers=0"],
    "train": (
        "epochs=1",
        "batch_size=8",
        "data.image_size=64",  # from 64 on it is the ResNet-18 that the page speaks of
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "num_workers=0",
        "callbacks.pictures=null",
    ),
    "evaluate": ("device=cpu", "num_workers=0", "plot=none"),
    "predict": ("device=cpu", "num_workers=0"),
    "serve": ("device=cpu", "port=0"),
}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders that the page speaks of, in the current one; and torchvision's weights without a download."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    names = [f"photos/{kind}/{number}.jpg" for kind in ("cat", "dog") for number in range(8)]
    for name in (*names, "new_photos/one.jpg", "new_photos/two.jpg", "a.jpg", "b.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(256, size=(40, 48, 3), dtype=np.uint8)).save(name)
    weights = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *args, **kwargs: weights)


def test_the_commands_run_one_after_the_other(
    photos: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server says where it listens, and ends; tests/test_serve_process.py asks it."""
    monkeypatch.setattr("imgrec.serving.server.run_server", lambda service, opened, *, on_started, **_: on_started())
    assert [name for name, *_ in COMMANDS] == ["check", "train", "evaluate", "predict", "serve"]
    said = {}
    for name, *words in COMMANDS:
        assert cli.main([name, *words, *SMALL[name]]) == 0, words
        said[name] = capsys.readouterr().out
    assert "no faults" in said["check"]
    assert "test accuracy" in said["train"]
    assert "imgrec evaluate runs/imagefolder_resnet/1" in said["train"]  # where the next commands look for it
    assert "accuracy" in said["evaluate"]
    assert [name in said["predict"] for name in ("one.jpg", "two.jpg")] == [True, True]
    assert re.search(
        r"2 classes \(cat, dog\)\n.* (http://127\.0\.0\.1:\d+),.*\n.*\n  curl -F image=@photo.jpg \1/predict\n", said["serve"]
    )


@pytest.mark.slow
def test_the_python_runs(photos: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    fit: Callable[..., Any] = imgrec.fit
    monkeypatch.setattr(imgrec, "fit", lambda **keys: fit(SMALL["train"], **keys), raising=False)
    names: dict[str, Any] = {}
    exec(code, names)
    assert 0 < names["result"]["test"]["count"] < 40
    assert [answer.class_name in ("cat", "dog") for answer in names["predictions"]] == [True, True]
