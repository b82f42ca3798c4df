"""Cross-validation: folds that are parts of the training images, runs that are resumed, and one table of all predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytorch_lightning as pl
from error_parts import assert_refused, raises_error
from hypothesis import given
from hypothesis import strategies as st
from marks import fewer
from sklearn.metrics import accuracy_score, f1_score
from small_run import SMALL

from imgrec import cli
from imgrec.data.folds import fold_numbers, in_fold
from imgrec.data.split_record import DataRecord
from imgrec.distributed import signals
from imgrec.errors import CheckpointError, DataError, Stopped
from imgrec.inference.folds import pool_folds
from imgrec.inference.prediction_table import PredictionFiles
from imgrec.paths import find_checkpoint
from imgrec.sweeps.folds import cross_validate
from imgrec.train import fit


class Named:
    """A split of images with these labels, names and groups."""

    def __init__(self, labels: np.ndarray, names: np.ndarray | None = None, groups: np.ndarray | None = None) -> None:
        self.labels, self.names, self.groups = labels, names, groups

    def content(self) -> np.ndarray:
        return np.full((len(self.labels), 1), -1)


@fewer(20)
@given(st.integers(0, 1000), st.integers(2, 5), st.integers(2, 6), st.booleans())
def test_each_image_is_in_one_fold_with_its_group_and_its_class_in_all(
    seed: int, folds: int, classes: int, grouped: bool
) -> None:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(classes), 2 * folds), generator.integers(0, classes, 40)])
    groups = np.array([b"%d-%d" % (k, i % (2 * folds)) for i, k in enumerate(labels.tolist())]) if grouped else None
    names = tuple(map(str, range(classes)))
    numbers = fold_numbers(Named(labels, groups=groups), folds, classes=names, seed=seed)  # type: ignore[arg-type]
    assert set(numbers.tolist()) == set(range(folds))
    counts = np.array([np.bincount(labels[numbers == number], minlength=classes) for number in range(folds)])
    np.testing.assert_array_equal(counts.sum(axis=0), np.bincount(labels))
    if groups is None:
        assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1
    else:
        assert all(len(set(numbers[groups == group].tolist())) == 1 for group in set(groups.tolist()))
    assert (np.bincount(labels) - counts).min() >= 1  # each class is in the training images of each fold


def test_a_folder_of_folds_is_no_checkpoint_but_its_runs_are(tmp_path: Path) -> None:
    (tmp_path / "1/checkpoints").mkdir(parents=True)
    (tmp_path / "1/config.yaml").touch()
    with raises_error(CheckpointError, str(tmp_path), f"Type {tmp_path}/1 instead."):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "table", ["rank,job,folder\n1,4,runs/a/sweep_1/4\n2,0,runs/a/sweep_1/0\n", "rank,folder\n,x/0\n", "", "\0"]
)
def test_the_best_run_of_a_sweep_is_named(tmp_path: Path, table: str) -> None:
    (tmp_path / "1/checkpoints").mkdir(parents=True)
    (tmp_path / "1/config.yaml").touch()
    (tmp_path / "sweep.csv").write_text(table)
    named = f"its best, {tmp_path}/4" if "4" in table else f"Type {tmp_path}/1 instead."
    with raises_error(CheckpointError, str(tmp_path), named):
        find_checkpoint(tmp_path)


def test_too_few_of_a_class_are_refused() -> None:
    labels = np.array([0] * 9 + [1] * 3)
    with raises_error(DataError, "folds=5", "ant", "3 images", "folds=3"):
        fold_numbers(Named(labels), 5, classes=("bee", "ant"), seed=0)  # type: ignore[arg-type]
    groups = np.array([b"%d" % (i % 4) for i in range(9)] + [b"x", b"x", b"y"])
    with raises_error(DataError, "folds=3", "ant", "2 groups", "folds=2"):
        fold_numbers(Named(labels, groups=groups), 3, classes=("bee", "ant"), seed=0)  # type: ignore[arg-type]


def test_images_stay_in_the_fold_that_they_were_in() -> None:
    names = np.array([b"a/%d" % i for i in range(6)])
    images, numbers = Named(np.zeros(6, dtype=np.int64), names), np.array([0, 1, 0, 1, 0, 1])
    record = DataRecord.of(("a",), {"train": _part(images, [0, 1]), "val": _part(images, [2, 3])}, content=())  # type: ignore[arg-type]
    assert in_fold(images, numbers, 0, record).tolist() == [False, False, True, True, True, False]  # type: ignore[arg-type]


def _part(images: Named, rows: list[int]) -> Named:
    assert images.names is not None
    return Named(images.labels[rows], images.names[rows])


class StopAt(pl.Callback):
    """Asks for a stop, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **keys: Any) -> None:
        if trainer.global_step == self.step:
            signals.request_stop("a test")


WORDS = tuple(word for word in SMALL if not word.startswith("trainer.limit_train"))


@pytest.mark.slow
def test_folds_that_were_stopped_end_as_those_that_were_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trained: list[str] = []

    def stopping(run: Any, /, **keys: Any) -> Any:
        trained.append(run.id)
        return fit(run, callbacks=[StopAt(3)] if run.id == "2" and len(trained) == 2 else None, **keys)

    words = [*WORDS, "data.train_samples=48", "runs_dir=stopped"]
    with pytest.raises(Stopped):
        cross_validate([*words, "folds=3"], "folds=3", None, stopping)
    first = Path("stopped/fake_lenet/folds_1/1/result.json")
    written = first.stat().st_mtime_ns
    assert not Path("stopped/fake_lenet/folds_1/2/result.json").exists()
    assert cli.main(["train", *words, "folds=3"]) == 0
    assert first.stat().st_mtime_ns == written
    assert cli.main(["train", *words[:-1], "folds=3"]) == 0
    tables = [pq.read_table(f"{runs}/fake_lenet/folds_1/predictions.parquet") for runs in ("stopped", "runs")]
    assert tables[0].equals(tables[1])

    table, folder = tables[0].to_pydict(), Path("runs/fake_lenet/folds_1")
    assert table["index"] == list(range(48))
    result = json.loads((folder / "result.json").read_text())
    assert result["test"]["accuracy"] == accuracy_score(table["true"], table["predicted"])
    assert result["test"]["macro_f1"] == pytest.approx(
        f1_score(table["true"], table["predicted"], average="macro", zero_division=0)
    )
    assert [row["count"] for row in result["folds"]] == [16, 16, 16]
    # Each image by the run that it was not trained on: the same as evaluate says of that run's validation split.
    for number, row in enumerate(result["folds"], 1):
        assert cli.main(["evaluate", f"runs/fake_lenet/folds_1/{number}", "split=val", "plot=none"]) == 0
        assert json.loads((folder / f"{number}/evaluate_val.json").read_text())["figures"]["accuracy"] == row["accuracy"]
    capsys.readouterr()
    assert cli.main(["train", *words[:-1], "folds=3"]) == 0  # finished: it is shown, and nothing is trained
    said = capsys.readouterr().out
    assert "pooled" in said
    assert "fold 1/3" not in said
    assert cli.main(["train", *words[:-1], "folds=2"]) == 0
    assert Path("runs/fake_lenet/folds_2/2/result.json").exists()
    assert cli.main(["compare", "runs/fake_lenet/folds_1", "runs/fake_lenet/folds_2"]) == 0
    assert "B was tested on other images" not in capsys.readouterr().out
    assert cli.main(["check", "ckpt=runs/fake_lenet/folds_1", "suspects=true"]) == 0
    (found,) = json.loads(Path("check.json").read_text())["findings"]
    assert (found["looked_at"], found["not_looked_at"]) == ({"train": 48, "test": 6}, 0)


@pytest.mark.slow
def test_a_folder_of_folds_has_the_images_of_all(tmp_path: Path) -> None:
    """With groups, and a validation split of the data's own, which is left out."""
    from image_files import encode, picture

    rows = ["path,label,split,who"]
    for k, name in enumerate(("cat", "dog")):
        for i in range(12):
            (tmp_path / f"{name}{i}.png").write_bytes(encode(picture(100 * k + i, 40, 40), "PNG"))
            rows.append(f"{name}{i}.png,{name},{'val' if i == 11 else 'train'},{name}{i // 2 if i < 11 else 'v'}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    words = [
        "data=table",
        f"data.file={tmp_path / 'table.csv'}",
        "data.split=split",
        "data.group=who",
        "data.image_size=32",
        f"runs_dir={tmp_path}",
    ]
    own = [word for word in SMALL if not word.startswith("data")]
    assert cross_validate([*words, *own, "folds=2"], "folds=2", None, fit) == 0
    folder = tmp_path / "table_lenet/folds_1"
    table = pq.read_table(folder / "predictions.parquet").to_pydict()
    assert sorted(Path(path).name for path in table["path"]) == sorted(
        f"{name}{i}.png" for name in ("cat", "dog") for i in range(11)
    )
    files = PredictionFiles(tmp_path / "errors.csv", None, tmp_path / "again.parquet")
    report, folds = pool_folds([folder / "1", folder / "2"], files)
    assert report.count == sum(fold.count for fold in folds) == 22


@pytest.mark.slow
def test_images_that_change_between_folds_are_named(tmp_path: Path) -> None:
    from image_files import encode, picture

    for k, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / f"photos/{name}/{i}.png").write_bytes(encode(picture(100 * k + i, 40, 40), "PNG"))
    own = [word for word in SMALL if not word.startswith("data")]
    words = ["data=imagefolder", f"data.root={tmp_path / 'photos'}", "data.image_size=32", f"runs_dir={tmp_path}/runs", *own]
    swaps = tmp_path / "photos/cat/0.png", tmp_path / "photos/cat/zz.png"

    def stopping(run: Any, /, **keys: Any) -> Any:
        result = fit(run, **keys)
        signals.request_stop("a test")
        return result

    with signals.request_cleared(), pytest.raises(Stopped):
        cross_validate([*words, "folds=2"], "folds=2", None, stopping)
    swaps[0].rename(swaps[1])
    with raises_error(DataError, "the images have changed since fold 1", "1 new", "1 gone", "resume=false"):
        cross_validate([*words, "folds=2"], "folds=2", None, fit)
    swaps[1].rename(swaps[0])
    fold = tmp_path / "runs/imagefolder_lenet/folds_1/1"
    with raises_error(DataError, "9 images", "in two folds", "resume=false"):
        pool_folds([fold, fold], PredictionFiles(tmp_path / "a.csv", None, tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("folds=1",), ("folds=1", "2", "folds=5")),
        (("folds=0",), ("folds=0", "2", "folds=5")),
        (("folds=five",), ("folds=five", "2", "folds=5")),
        (("-m", "folds=3", "seed=0,1"), ("folds=3", "-m")),
        (("folds=3", "batch_size=auto"), ("batch_size=auto", "the folds", "batch_size=64")),
        (("folds=3", "optim.lrr=1"), ("'optim.lrr=1'", "optim.lr")),
        (("folds=1500", "data=digits"), ("folds=1500", "8", "139 images", "folds=139")),
    ],
)
def test_what_cannot_be_folded_is_refused(
    words: tuple[str, ...],
    parts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *words]) == 2
    assert_refused(capsys.readouterr().err, *parts)
    assert not list(tmp_path.iterdir())


def test_a_job_is_no_cross_validation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["slurm", "time=1h", "--", "folds=5", "data=digits"]) == 2
    assert_refused(capsys.readouterr().err, "folds=5", "sbatch --wrap 'imgrec train folds=5 data=digits'")
