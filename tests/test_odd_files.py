"""Every command that takes a run, a checkpoint or a model refuses what is none in one line that says what it is and what to type."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from error_parts import assert_refused
from marks import slow_but
from PIL import Image

from imgrec import cli

COMMANDS = {
    "predict": "{} a.png",
    "evaluate": "{}",
    "explain": "{}",
    "export": "{}",
    "serve": "{}",
    "extend": "{} folder",
    "check": "ckpt={} suspects=true",
    "verify": "{}",
    "report": "{}",
    "compare": "{} runs/n/1",
    "soup": "{} runs/n/1",
    "train": "data=digits weights={}",
    "train again": "data=digits continue_from={}",
    "train by": "data=digits distill.teacher={}",
}
KINDS = {
    "some.sh": "a text file",
    "umlaut.txt": "a text file",
    "empty": "an empty file",
    "empty.ckpt": "an empty file",
    "a.png": "an image",
    "a.zip": "an archive of other files",
    "arrays.npz": "an archive of other files",
    "noise": "a file of another format",
    "objects.pkl": "a file of another format",
    "m.pt2": "an exported file",
    "m.safetensors": "an exported file",
    "m.onnx": "an exported file",
}
# What is said of all but runs, where a run directory or an ONNX file is needed.
OTHERWISE = {"verify": "an .onnx file", "report": "no run directory", "train again": "no run directory"}
OTHERWISE |= dict.fromkeys(["compare", "soup"], "no run directory")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of such files, and of two runs as far as their place is looked at."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "some.sh").write_text("#!/bin/sh\necho hello\n")
    (folder / "umlaut.txt").write_text("ä" * 300)  # two bytes each: the 512th is half of one
    for name in ("empty", "empty.ckpt", "m.safetensors"):
        (folder / name).touch()
    Image.new("L", (9, 9)).save(folder / "a.png")
    for name in ("a.zip", "m.pt2"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("x", "y")
    np.savez(folder / "arrays.npz", a=np.zeros(3))
    (folder / "noise").write_bytes(bytes(range(256)))
    (folder / "objects.pkl").write_bytes(pickle.dumps({"a": print}))
    (folder / "m.onnx").write_bytes(b"\x08\x08")
    (folder / "folder").mkdir()
    for number in ("1", "2"):
        saved = folder / "runs/n" / number / "checkpoints"
        saved.mkdir(parents=True)
        saved.with_name("config.yaml").touch()
        os.utime(saved, (int(number), int(number)))
    return folder


def refused(command: str, given: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of it, without its key."""
    assert cli.main([command.split(maxsplit=1)[0], *COMMANDS[command].format(given).split()]) == 2
    return re.sub(r"(?<=^imgrec: )[a-z._]+=", "", capsys.readouterr().err)


@pytest.mark.parametrize("command", slow_but("predict", "report", "verify", among=COMMANDS))
def test_a_file_that_is_no_run_is_named_by_its_kind(
    command: str, odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(odd)
    for name, kind in KINDS.items():
        said = "it is damaged" if command in ("serve", "verify") and name == "m.onnx" else OTHERWISE.get(command, kind)
        assert_refused(refused(command, name, capsys), name, said)


@pytest.mark.parametrize("command", slow_but("explain", "report", among=[name for name in COMMANDS if name != "verify"]))
def test_a_folder_of_runs_names_the_newest_and_a_file_in_one_its_run(
    command: str, odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(odd)
    for given in ("runs", "runs/n"):
        assert_refused(refused(command, given, capsys), given, "runs/n/2, runs/n/1", "Type runs/n/2")
    assert_refused(refused(command, "runs/n/2/config.yaml", capsys), "runs/n/2/config.yaml", "Type runs/n/2")
    assert "NAME/ID" in refused(command, "folder", capsys)


def test_a_run_whose_only_checkpoint_is_damaged_is_not_named_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("n/1/checkpoints").mkdir(parents=True)
    Path("n/1/config.yaml").touch()
    Path("n/1/checkpoints/best.ckpt").touch()
    said = refused("evaluate", "n/1", capsys)
    assert_refused(said, "n/1/checkpoints/best.ckpt", "an empty file", "runs/NAME/ID")
    assert "Type" not in said
    Path("n/1/checkpoints/last.ckpt").touch()
    assert_refused(refused("evaluate", "n/1", capsys), "n/1/checkpoints/best.ckpt", "n/1/checkpoints/last.ckpt")
