"""imgrec check: what leaked images are worth in the test of a run, names of bursts, and splits without leaks."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from error_parts import assert_refused
from image_files import encode, picture

from imgrec import cli
from imgrec.analysis.leaks import leak_worth
from imgrec.inference.prediction_table import write_table
from imgrec.terminal import percent, percents

WORDS = ("data.image_size=48", "num_workers=0")


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["check", *words, *WORDS])
    return code, *capsys.readouterr()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes with ten images in train, three in val and four in test; there also a mirrored copy and one of a burst, both of train."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "photos"
    for k, name in enumerate(("cat", "dog")):
        for split, count in (("train", 10), ("val", 3), ("test", 4)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = picture(100 * k + i + 20 * len(split), 160, 120)
                (root / split / name / f"{split}{i}.jpg").write_bytes(encode(image, "JPEG"))
        copy = picture(100 * k + 103, 160, 120).transpose(0).resize((200, 150))
        (root / "test" / name / "copy.png").write_bytes(encode(copy, "PNG"))
        (root / "train" / name / "burst_7_a.jpg").write_bytes(encode(picture(100 * k + 90, 160, 120), "JPEG"))
        (root / "test" / name / "burst_7_b.jpg").write_bytes(encode(picture(100 * k + 91, 160, 120), "JPEG"))
    (root / "train/cat/broken.jpg").write_bytes(b"")
    return root


def save_run(run: Path, paths: list[Path], correct: list[bool]) -> None:
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/best.ckpt").write_bytes(b"PK\x03\x04")  # as a checkpoint begins
    predicted = ["cat" if right else "dog" for right in correct]
    table = {"path": list(map(str, paths)), "true": ["cat"] * len(paths), "predicted": predicted}
    write_table(run / "predictions.parquet", [table])


def test_it_says_what_leaks_are_worth_and_writes_splits_without_them(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tested = sorted((photos / "test").glob("*/*"))
    leaked = np.array([path.name == "copy.png" for path in tested])
    correct = leaked | (np.arange(len(tested)) % 3 == 0)
    save_run(Path("run"), tested, correct.tolist())
    code, said, _ = say(capsys, str(photos), "ckpt=run", "write=splits")
    assert code == 3
    worth = leak_worth(correct, leaked)
    assert worth.accuracy > worth.clean_accuracy
    assert f"test {percent(worth.accuracy)} {percents(worth.interval)}, without the 2 leaked images" in said
    assert f"{percent(worth.clean_accuracy)} {percents(worth.clean_interval)}" in said
    content = json.loads(Path("check.json").read_text())
    assert content["leak_worth"] == {"table": "run/predictions.parquet", **json.loads(json.dumps(worth._asdict()))}
    found = {finding["kind"]: finding["images"] for finding in content["findings"]}
    assert found["named_alike"] == ["test/cat/burst_7_b.jpg", "test/dog/burst_7_b.jpg"]
    assert "test/cat/burst_7_b.jpg and train/cat/burst_7_a.jpg" in said
    assert {f"test/{name}/copy.png" for name in ("cat", "dog")} <= set(found["leak"])

    table = ["data=table", "data.file=check.splits.csv", f"data.root={photos}", "data.split=split", "data.group=copy_of"]
    code, said, _ = say(capsys, *table, "out=again.json")
    assert (code, "no faults" in said) == (0, True), said
    again = json.loads(Path("again.json").read_text())
    assert not {finding["kind"] for finding in again["findings"]} & {"leak", "looks_alike", "named_alike"}
    assert sum(again["images"].values()) == sum(content["images"].values()) - 1  # but for the broken one
    assert say(capsys, *table, "out=again.json", "write=splits")[0] == 0  # a table of ours is written again


def test_names_that_are_no_utf8_are_found_in_the_table(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "test/cat/copy.png").rename(photos / "test/cat" / os.fsdecode(b"\xe4.png"))
    tested = sorted((photos / "test").glob("*/*"))
    save_run(Path("run"), tested, [True] * len(tested))
    _, said, _ = say(capsys, str(photos), "ckpt=run")
    assert "without the 2 leaked images" in said
    assert "not in" not in said


def test_a_test_without_leaks_and_one_of_other_images(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(Path("run"), [photos / "test/cat/test0.jpg", photos / "gone.jpg"], [True, True])
    _, said, _ = say(capsys, str(photos), "ckpt=run")
    assert "test 100.00% (2.5 to 100.0), and none of its images has a copy in train; 1 image of its test not in" in said
    save_run(Path("other"), [Path("/elsewhere/a.jpg")], [True])
    code, _, error = say(capsys, str(photos), "ckpt=other")
    assert code == 2
    assert_refused(error, "ckpt=other", "/elsewhere", "data.root=FOLDER")


def test_a_run_without_a_test_and_a_table_of_somebody_else_are_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(Path("run"), [], [])
    Path("run/predictions.parquet").unlink()
    code, _, error = say(capsys, str(photos), "ckpt=run")
    assert code == 2
    assert_refused(error, "ckpt=run", "imgrec evaluate run")
    Path("check.splits.csv").write_text("path,label,split\na.jpg,cat,train\n")
    code, _, error = say(capsys, str(photos), "write=splits")
    assert code == 2
    assert_refused(error, "out=check.splits.csv", "overwrite=true")
