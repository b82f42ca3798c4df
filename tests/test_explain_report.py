"""What `imgrec explain RUN` adds to a run's report."""

import json

import pytest
from error_parts import assert_refused
from PIL import Image
from small_run import SMALL
from test_report import read_page

from imgrec import cli
from imgrec.inference.stored_predictions import read_predictions
from imgrec.report.write import write_report
from imgrec.train import fit


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
