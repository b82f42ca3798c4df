"""What a training says of faults of its data without decoding it: the counts of its classes, and what a check found."""

import json
import shlex
from pathlib import Path

import pytest
from image_files import encode, picture
from small_run import SMALL

from imgrec import cli, config
from imgrec.analysis.diagnosis import leak_suspected
from imgrec.config.compose import compose_config
from imgrec.data.datamodule import build_data
from imgrec.scan.known_faults import OF_SPLITS, check_command, known_faults
from imgrec.train import fit


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes, each with a copy of an image of train in test; dog is missing in val."""
    monkeypatch.setenv("IMGREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "photos"
    for k, name in enumerate(("cat", "dog")):
        for split, count in (("train", 4), ("val", 2 * (1 - k)), ("test", 2)):
            for i in range(count):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                image = picture(5000 + 100 * k + i + 20 * len(split), 160, 120)
                (root / split / name / f"{i}.png").write_bytes(encode(image, "PNG"))
        (root / "test" / name / "copy.png").write_bytes((root / "train" / name / "0.png").read_bytes())
    return root


def words(root: Path, *more: str) -> list[str]:
    kept = [word for word in SMALL if not word.startswith(("data", "trainer.limit"))]
    return [*kept, "data=imagefolder", "data.image_size=48", f"data.root={root}", f"runs_dir={root.parent}/runs", *more]


def found(root: Path, *more: str) -> dict[str, str]:
    run = config.load("train", words(root, *more))
    data, _ = build_data(run)
    faults = known_faults(data, data.record(), run)
    assert faults.command == f"imgrec check data.root={root}"
    return {fault.kind: str(fault) for fault in faults.found}


def test_a_training_knows_what_a_check_found_in_the_same_images(photos: Path) -> None:
    assert list(found(photos)) == ["missing_class"]
    assert cli.main(["check", str(photos), "data.image_size=48", "num_workers=0"]) == 3
    known = found(photos)
    assert set(known) == {"leak", "missing_class"}
    assert known["leak"].startswith("2 leak: ")
    assert known["missing_class"].startswith("val has no dog. ")
    assert set(found(photos, "data.image_size=16")) == set(known)
    (photos / "test/cat/copy.png").write_bytes(encode(picture(7), "PNG"))
    assert list(found(photos)) == ["missing_class"]  # other images: nobody looked at them


def test_whether_an_image_is_tiny_is_known_at_the_size_of_the_check_alone(photos: Path) -> None:
    (photos / "train/cat/icon.png").write_bytes(encode(picture(3, 12, 12), "PNG"))
    assert cli.main(["check", str(photos), "data.image_size=48", "num_workers=0"]) == 3
    assert set(found(photos)) == {"leak", "missing_class", "tiny"}
    assert set(found(photos, "data.image_size=16")) == {"leak", "missing_class"}
    assert list(found(photos, "data.channels=1", "data.mean=[0.5]", "data.std=[0.2]")) == ["missing_class"]  # other pixels


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        (("data=imagenet",), "imgrec check data.root=data/imagenet"),
        (
            ("data=imagefolder", "data.root=my photos", "data.label_from=^[a-z]+", "data.test_share=0.3"),
            "imgrec check 'data.root=my photos' 'data.label_from=^[a-z]+' data.test_share=0.3",
        ),
        (
            ("data=table", "data.file=t.csv", "data.split=part", "data.image_size=48"),
            "imgrec check data=table data.file=t.csv data.split=part",
        ),
        (("data=mnist",), ""),
    ],
)
def test_the_command_checks_the_splits_of_the_run(overrides: tuple[str, ...], command: str) -> None:
    own = config.load("train", overrides).data.to_node()
    assert check_command(own) == command
    if command:
        data = compose_config("check", shlex.split(command)[2:])["data"]
        assert {key: data.get(key) for key in OF_SPLITS} == {key: own.get(key) for key in OF_SPLITS}


def test_a_damaged_cache_is_no_check(photos: Path) -> None:
    assert cli.main(["check", str(photos), "data.image_size=48", "num_workers=0"]) == 3
    (file,) = photos.parent.joinpath("cache").rglob("checked-*")
    kept = file.read_bytes()
    for content in (b"", b"[[1]]", b"3", b"{}", kept[:-1], kept.replace(b"leak", b"weak"), kept.replace(b"1", b"7")):
        file.write_bytes(content)
        assert list(found(photos)) == ["missing_class"]


def test_an_imbalance_that_the_run_answers_is_not_said(photos: Path) -> None:
    for k in range(40):
        (photos / f"train/cat/more{k}.png").write_bytes(encode(picture(k), "PNG"))
    said = found(photos)["imbalance"]
    assert said.startswith("cat has 44 images, dog 4. ")
    assert "sampling=sqrt" in said
    assert "imbalance" not in found(photos, "sampling=sqrt")
    assert "imbalance" not in found(photos, "loss.class_weights=balanced")


def test_a_leak_is_suspected_where_there_is_one() -> None:
    assert leak_suspected(0, 400, "imgrec check photos ckpt=run", tested=True) == []
    ((rule, sentence),) = leak_suspected(37, 1400, "imgrec check photos ckpt=run", tested=True)
    assert rule == "leak suspected"
    assert "37 of the 1,400 images" in sentence
    assert sentence.endswith("See what that is worth: imgrec check photos ckpt=run")
    assert leak_suspected(37, 1400, "imgrec check photos", tested=False)[0].sentence.endswith("See which: imgrec check photos")


@pytest.mark.slow
@pytest.mark.parametrize("leaking", [True, False])
def test_a_training_says_it_at_its_start_and_at_its_end(photos: Path, capsys: pytest.CaptureFixture[str], leaking: bool) -> None:
    if not leaking:
        for name in ("cat", "dog"):
            (photos / "test" / name / "copy.png").unlink()
    cli.main(["check", str(photos), "data.image_size=48", "num_workers=0"])
    capsys.readouterr()
    run = fit(words(photos, "name=a", "id=1"))
    said = "".join(capsys.readouterr().out.split())
    assert ("2leak:trainhasthesamepicture" in said) == leaking
    result = json.loads((run.folder / "result.json").read_text())
    assert {fault["kind"] for fault in result["data_faults"]} == {"missing_class", *["leak"] * leaking}
    sentences = {finding["rule"]: finding["sentence"] for finding in result["diagnosis"]}
    assert ("leak suspected" in sentences) == leaking
    if leaking:
        assert sentences["leak suspected"].endswith(f"imgrec check data.root={photos} ckpt={run.folder}")
        assert "2 of the 8 images" in sentences["leak suspected"]
