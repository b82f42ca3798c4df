"""The report of a run without a test split: it is answered by `imgrec evaluate RUN split=val`, as far as that is of the run."""

import json

import pyarrow.parquet as pq
import pytest
from error_parts import assert_refused
from huggingface_hub import ModelCard
from PIL import Image
from sklearn import metrics
from small_run import SMALL
from test_report import read_page
from written_runs import SETTINGS, write_probable_run

from imgrec import cli
from imgrec.analysis.paired import mcnemar_exact
from imgrec.report.questions import BETTER, NEXT, WHY, WORST_CLASS
from imgrec.report.write import write_report
from imgrec.train import fit

CLASSES = ["cat", "dog", "cow", "none"]
WEIGHTS = {"best": {"sha256": "a"}, "last": {"sha256": "b"}, "test": None}


def write_validated_run(folder, /, *, seed=0, **evaluated):
    """A run without a test, whose validation images were evaluated; evaluated: keys of evaluate_val.json."""
    write_probable_run(folder, classes=CLASSES, count=300, seed=seed, weights=WEIGHTS, settings={"seed": seed})
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"test": None}))
    (folder / "predictions.parquet").rename(folder / "evaluate_val_predictions.parquet")
    size = SETTINGS["data"]["image_size"]
    written = {"weights": "a", "folder": None, "tta": None, "image_size": size, "figures": result["test"]} | evaluated
    (folder / "evaluate_val.json").write_text(json.dumps(written))
    return folder


def labels(folder):
    table = pq.read_table(folder / "evaluate_val_predictions.parquet").to_pydict()
    return table["true"], table["predicted"]


def test_its_questions_are_answered_by_validation(tmp_path):
    folder = write_validated_run(tmp_path / "n/1")
    write_report(folder)
    page, (true, predicted) = read_page(folder), labels(folder)
    assert page.figures["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    f1 = metrics.f1_score(true, predicted, labels=CLASSES[:3], average=None)
    assert f"{CLASSES[f1.argmin()]}: of its " in page.sections[WORST_CLASS]
    assert "called another class" in page.sections[WHY]
    assert "images of validation are right" in page.sections["result"]
    assert "too high" in page.sections["result"]
    assert "in val" in page.sections["classes"]
    assert f"imgrec evaluate {folder} split=val" in page.sections[NEXT]
    assert "imgrec compare" not in page.sections[NEXT]  # which is of tests
    assert "of the test" not in page.text
    assert not ModelCard((folder / "model_card.md").read_text()).data.eval_results  # which are those of a test


def test_it_is_compared_with_a_run_that_was_evaluated_too(tmp_path):
    folders = [write_validated_run(tmp_path / f"n/{seed}", seed=seed) for seed in (1, 2)]
    write_report(folders[1])
    (true, first), (_, second) = map(labels, folders)
    right = [[one == other for one, other in zip(true, given, strict=True)] for given in (first, second)]
    only = [sum(a and not b for a, b in zip(*pair, strict=True)) for pair in (right, right[::-1])]
    said = read_page(folders[1]).sections[BETTER]
    assert f"p = {mcnemar_exact(*only):.2g}" in said
    assert "Not shown." in said
    (folders[0] / "evaluate_val.json").unlink()
    write_report(folders[1])
    assert f"imgrec evaluate {folders[0]} split=val" in read_page(folders[1]).sections[BETTER]


@pytest.mark.slow  # the files of the other tests are written by hand
def test_what_evaluate_writes_is_what_the_report_reads(tmp_path):
    for split in ("train", "val"):
        for k, name in enumerate(CLASSES[:3]):
            for i in range(4):
                (tmp_path / "photos" / split / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), (60 * k, 20 * i, len(split))).save(tmp_path / "photos" / split / name / f"{i}.png")
    words = [word for word in SMALL if not word.startswith(("data.num", "data.train", "data.test", "data=", "trainer.limit"))]
    fit(["data=imagefolder", f"data.root={tmp_path}/photos", *words, f"runs_dir={tmp_path}", "name=n", "id=1"], quiet=True)
    folder = tmp_path / "n/1"
    assert cli.main(["evaluate", str(folder), "split=val", "num_workers=0"]) == 0
    assert cli.main(["report", str(folder)]) == 0
    page, (true, predicted) = read_page(folder), labels(folder)
    assert len(true) == 12
    assert page.figures["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    assert "There are no pictures" not in page.text


@pytest.mark.parametrize("other", [{"weights": "b"}, {"tta": "flip"}, {"folder": "photos"}, {"image_size": 999}])
def test_figures_of_other_weights_or_images_do_not_count(other, tmp_path):
    folder = write_validated_run(tmp_path / "n/1", **other)
    write_report(folder)
    assert f"imgrec evaluate {folder} split=val" in read_page(folder).sections[WORST_CLASS]
    assert f"imgrec report {folder}" in read_page(folder).sections[WORST_CLASS]


@pytest.mark.parametrize("changed", [{"figures": {}}, {"figures": 5}, {"weights": 5}])
def test_figures_that_were_changed_are_refused_with_what_writes_them(changed, tmp_path, capsys):
    folder = write_validated_run(tmp_path / "n/1", **changed)
    assert cli.main(["report", str(folder)]) == 2
    assert_refused(capsys.readouterr().err, f"{folder}/evaluate_val.json", f"imgrec evaluate {folder} split=val")
