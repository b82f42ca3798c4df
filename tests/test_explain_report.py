"""What `imgrec explain RUN` adds to a run's report."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from error_parts import assert_refused
from PIL import Image
from small_run import SMALL
from test_report import read_page

from imgrec import cli
from imgrec.inference.metrics import make_report
from imgrec.inference.stored_predictions import read_predictions
from imgrec.report.write import write_report
from imgrec.train import fit
from imgrec.training.calibrate import fit_calibration


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run = fit([*SMALL, f"runs_dir={folder}", "trainer.limit_test_batches=1.0"]).folder
    assert cli.main(["explain", str(run), "method=gradients", "device=cpu"]) == 0
    return run


def test_a_run_is_explained_by_its_errors_beside_those_of_its_report(run):
    stored = json.loads((run / "explained/explain.json").read_text())
    table = read_predictions(run / "predictions.parquet", None, fix="")
    errors = int((table.true != table.predicted).sum())
    assert len(stored["images"]) == errors
    assert stored["looked_at"] == len(table.true)
    assert len(list((run / "explained").glob("*_image *.png"))) == errors
    page = read_page(run)
    assert "integrated gradients" in page.sections["maps"]
    assert "of no class lie mostly on the border" in page.sections["maps"]
    html = (run / "report.html").read_text()
    assert html.count('<img alt="integrated gradients of image ') == errors


def test_the_true_class_of_an_error_is_in_the_table(run):
    table = read_predictions(run / "predictions.parquet", None, fix="")
    true = {f"image {row}": table.classes[table.true[row]] for row in range(len(table.true))}
    with (run / "explained/explain.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: row["true"] for row in rows} == {row["path"]: true[row["path"]] for row in rows}
    assert all(row["true"] != row["class"] for row in rows)


@pytest.mark.slow
def test_a_run_without_errors_shows_the_least_certain_images_as_such(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "n/1")
    table = pq.read_table(folder / "predictions.parquet")
    right = table.set_column(table.column_names.index("true"), "true", table["predicted"])
    pq.write_table(
        right.set_column(right.column_names.index("true_probability"), "true_probability", right["probability"]),
        folder / "predictions.parquet",
    )
    result = json.loads((folder / "result.json").read_text())
    names = [row["name"] for row in result["test"]["per_class"]]
    confusion = np.diag([table["predicted"].to_pylist().count(name) for name in names])
    test = make_report(confusion, top5_hits=0, loss=0.5, classes=names).to_dict()
    (folder / "result.json").write_text(json.dumps(result | {"test": test}))
    assert cli.main(["explain", str(folder), "method=gradients", "device=cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "every image of the test is right" in said[0]
    assert said[1].split()[:3] == ["file", "true", "class"]
    maps = read_page(folder).sections["maps"]
    assert "least certain of: every image of the test is right" in maps
    assert "and wrong" not in maps
    assert "\u2192" not in maps


@pytest.mark.slow
def test_a_checkpoint_that_was_changed_is_explained_as_it_is_predicted(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "n/1")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    file = folder / "checkpoints/best.ckpt"
    content = torch.load(file, weights_only=True)
    info = content["imgrec"]
    logits, labels = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    fitted = replace(fit_calibration(logits, labels, torch.device("cpu")), weights="of others")
    next(iter(content["state_dict"].values())).mul_(1.01)
    torch.save({**content, "imgrec": {**info, "calibration": fitted.pack()}}, file)
    words = [str(folder), f"images={tmp_path}/a.png", f"out={tmp_path}/out", "device=cpu", "method=gradients"]
    assert cli.main(["explain", *words]) == 2
    assert_refused(capsys.readouterr().err, str(file), "its weights are not those", "explain", "calibrated=false")
    assert cli.main(["explain", *words, "calibrated=false"]) == 0
    capsys.readouterr()
    assert cli.main(["explain", str(folder), "device=cpu", "calibrated=false"]) == 2
    assert_refused(capsys.readouterr().err, "images=null", str(file), "other weights", "images=FOLDER")


def test_maps_on_a_border_are_warned_of_and_those_of_other_weights_not_shown(run, capsys):
    file = run / "explained/explain.json"
    stored = json.loads(file.read_text())
    found = {
        "class": "<b>cat",
        "label": 0,
        "region": "lower right corner",
        "share": 0.8,
        "area": 0.0625,
        "images": 20,
        "p": 0.001,
    }
    file.write_text(json.dumps(stored | {"concentrations": [found], "layer": "<i>layer3"}))
    write_report(run)
    said = read_page(run).sections["maps"]
    assert "Grad-CAM is of the layer <i>layer3." in said
    assert "<b>cat: 80.00% of the maps of 20 images lie in the lower right corner, 6.25% of the image." in said
    file.write_text(json.dumps(stored | {"weights": "others"}))
    write_report(run)
    assert f"is of other weights. Type imgrec explain {run}" in read_page(run).sections["maps"]
    file.write_text(json.dumps(stored | {"concentrations": [found | {"share": 2}]}))
    assert cli.main(["report", str(run)]) == 2
    assert_refused(capsys.readouterr().err, str(file), "concentrations.0.share=2", f"imgrec explain {run}")
    (image, *_) = stored["images"]
    elsewhere = image | {"maps": [image["maps"][0] | {"picture": "https://example.org/a.png"}]}
    file.write_text(json.dumps(stored | {"images": [elsewhere]}))
    assert cli.main(["report", str(run)]) == 2
    assert_refused(capsys.readouterr().err, str(file), "images.0.maps.0.picture=https://example.org", "data:image/webp")


def test_what_a_report_shows_is_not_replaced_by_maps_of_other_images(run, tmp_path, capsys):
    (tmp_path / "explained").mkdir()
    (tmp_path / "explained/explain.json").write_text("{}")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for out in (f"{tmp_path}/explained", f"{tmp_path}/./explained"):
        for images in ([f"images={tmp_path}/a.png"], []):
            assert cli.main(["explain", str(run), *images, f"out={out}", "device=cpu"]) == 2
            assert_refused(capsys.readouterr().err, f"out={tmp_path}/explained", "report.html", "out=ANOTHER", "overwrite=true")
    assert [path.name for path in (tmp_path / "explained").iterdir()] == ["explain.json"]


def test_without_images_a_checkpoint_file_is_refused(run, capsys):
    assert cli.main(["explain", str(run / "checkpoints/best.ckpt")]) == 2
    assert_refused(capsys.readouterr().err, "images=null", "best.ckpt", f"Type {run}")
