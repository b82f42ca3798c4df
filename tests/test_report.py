"""The report of a run: its figures are those of predictions.parquet, what a user wrote is text in it, and it says what it lacks."""

import json
import os
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pyarrow.parquet as pq
import pytest
from error_parts import assert_refused, raises_error
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from small_run import SMALL
from written_runs import write_probable_run, write_run

from imgrec import cli
from imgrec.analysis.intervals import share_interval
from imgrec.config.compose import compose_config
from imgrec.errors import DataError
from imgrec.html_page import Section, code, render, text
from imgrec.inference.prediction_table import write_table
from imgrec.inference.stored_predictions import read_predictions
from imgrec.report.charts import ChartLine, line_chart, ticks
from imgrec.report.facts import read_run_facts
from imgrec.report.model_card import plain
from imgrec.report.questions import BETTER, NEXT, OVER_FITTED, WHY, WORST_CLASS, question_sections
from imgrec.report.write import write_report
from imgrec.train import fit
from imgrec.training.last_screen import write_or_say
from imgrec.training.measured_file import records_hash

NASTY = "<script>alert(1)</script> a&\"b' 数字"
CLASSES = ["cat", NASTY, 'a&"b', "很长的类名" * 12, "dog", "never seen"]
QUESTIONS = {
    "which-class-is-worst": "Which class is worst?",
    "why": "Why?",
    "is-it-over-fitted": "Is it over-fitted?",
    "is-it-better-than-the-last-run": "Is it better than the last run?",
    "what-next": "What next?",
}


class Page(HTMLParser):
    """The text, the elements, the text below each heading of a section, the figures and the rows of tables of a page."""

    def __init__(self, page):
        super().__init__()
        self.text, self.elements, self.sections, self.figures = "", [], {}, {}
        self.tables, self.headings = {}, {}
        self._heading, self._table = None, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "h2":
            self._heading = attributes["id"]
            self.sections[self._heading] = ""
        if "data-figure" in attributes:
            self.figures[attributes["data-figure"]] = float(attributes["data-value"])
        if tag == "table":
            self._table = attributes.get("id")
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append([attributes.get("data-value"), ""])

    def handle_endtag(self, tag):
        if tag == "table":
            self._table = None

    def handle_data(self, data):
        self.text += data
        if self._heading is not None:
            self.sections[self._heading] += data
        if self._table in self.tables and self.tables[self._table] and self.tables[self._table][-1]:
            self.tables[self._table][-1][-1][1] += data


def read_page(folder):
    return Page((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run with nasty class names, after another one on the same data, and its page."""
    runs = tmp_path_factory.mktemp("runs")
    write_probable_run(runs / "n/1", classes=CLASSES, count=400, seed=1, settings={"optim.lr": 0.5})
    write_probable_run(runs / "n/folds_1", classes=CLASSES, count=400, seed=2, settings={"folds": 3})  # no run to compare with
    findings = [{"rule": "over-fitted", "sentence": f"over-fitted since epoch 1 {NASTY}"}]
    folder = write_probable_run(
        runs / "n/2",
        classes=CLASSES,
        count=400,
        settings={"model.widths": [NASTY]},
        command=f"imgrec train {NASTY}",
        diagnosis=findings,
        held_back=NASTY,
        device=NASTY,
        left_out=[NASTY],
        images={"train": dict.fromkeys(CLASSES, 9) | {"cat": 2}},
        time_shares={"compute": 0.75, "copy": 0.25},
        versions={"torch": NASTY},
        calibration={"temperature": None, "reason": NASTY, "test": None},
    )
    write_report(folder)
    return folder


def recomputed(folder):
    """(true, predicted, probabilities) of predictions.parquet, classes as numbers in CLASSES."""
    table = pq.read_table(folder / "predictions.parquet").to_pydict()
    numbers = {name: number for number, name in enumerate(CLASSES)}
    true, predicted = (np.array([numbers[name] for name in table[key]]) for key in ("true", "predicted"))
    return true, predicted, np.array(table["probabilities"], dtype=np.float32)


def test_the_figures_of_the_whole_are_those_of_the_table(written):
    true, predicted, probabilities = recomputed(written)
    present, rows = np.unique(true), np.arange(len(true))
    one_hot = np.eye(len(CLASSES))[true]
    confidence, right = probabilities.max(1).astype(np.float64), predicted == true
    bins = np.ceil(confidence * 15).astype(int)
    ece = sum(abs(right[bins == k].mean() - confidence[bins == k].mean()) * (bins == k).mean() for k in np.unique(bins))
    expected = {
        "accuracy": metrics.accuracy_score(true, predicted),
        "top5": metrics.top_k_accuracy_score(true, probabilities, k=5, labels=range(len(CLASSES))),
        "balanced_accuracy": metrics.recall_score(true, predicted, labels=present, average="macro"),
        "macro_f1": metrics.f1_score(true, predicted, labels=present, average="macro"),
        "matthews_correlation": metrics.matthews_corrcoef(true, predicted),
        "macro_auroc": np.mean([metrics.roc_auc_score(true == k, probabilities[:, k]) for k in present]),
        "macro_average_precision": np.mean([metrics.average_precision_score(true == k, probabilities[:, k]) for k in present]),
        "log_loss": -np.log(probabilities[rows, true].astype(np.float64)).mean(),
        "brier": ((probabilities - one_hot) ** 2).sum(1).mean(),
        "ece": ece,
    }
    figures = read_page(written).figures
    assert figures.pop("loss") == 0.5  # of the training's own loss, which no table has
    assert figures == pytest.approx(expected, abs=1e-6)


def test_the_rows_of_the_classes_and_pairs_are_those_of_the_table(written):
    true, predicted, probabilities = recomputed(written)
    page = read_page(written)
    head, *rows = page.tables["class-table"]
    assert [name for _, name in head] == [
        "class", "in train", "in test", "recall", "its 95% interval", "precision", "F1", "AUROC", "average precision",
    ]  # fmt: skip
    assert {name for (_, name), *_ in rows} == set(CLASSES)
    scores = metrics.precision_recall_fscore_support(true, predicted, labels=range(len(CLASSES)), zero_division=0)
    for (_, name), *cells in rows:
        k = CLASSES.index(name)
        precision, recall, f1, support = (each[k] for each in scores)
        values = [float(value) for value, _ in cells]
        assert values[:2] == [2 if name == "cat" else 9, support]
        if not support:
            assert values[2:4] + values[5:] == [-1] * 5
            continue
        area = metrics.roc_auc_score(true == k, probabilities[:, k])
        average = metrics.average_precision_score(true == k, probabilities[:, k])
        low = share_interval(((true == k) & (predicted == k)).sum(), support)[0]
        assert values[2:] == pytest.approx([recall, low, precision, f1, area, average], rel=1e-3)
    shown = [float(row[6][0]) for row in rows[:-1]]
    assert (shown, rows[-1][0][1]) == (sorted(shown), CLASSES[-1])
    confusion = metrics.confusion_matrix(true, predicted, labels=range(len(CLASSES)))
    np.fill_diagonal(confusion, 0)
    shown = [
        tuple(map(int, each["data-cell"].split(","))) for tag, each in page.elements if tag == "button" and "data-cell" in each
    ]
    assert [confusion[pair] for pair in shown] == sorted(confusion[confusion > 0].tolist(), reverse=True)[:20]


def test_five_questions_have_a_heading_with_an_answer(written):
    page = read_page(written)
    assert tuple(QUESTIONS) == (WORST_CLASS, WHY, OVER_FITTED, BETTER, NEXT)
    for question, heading in QUESTIONS.items():
        assert page.sections[question].startswith(heading)
        assert len(page.sections[question]) > len(heading) + 30
    true, predicted, _ = recomputed(written)
    f1 = metrics.f1_score(true, predicted, labels=range(len(CLASSES) - 1), average=None)
    assert page.sections[WORST_CLASS].removeprefix(QUESTIONS[WORST_CLASS]).startswith(f"{CLASSES[f1.argmin()]}: of its ")
    assert f"is the lowest: {f1.min():.2%}" in page.sections[WORST_CLASS]
    assert f"Yes: over-fitted since epoch 1 {NASTY}" in page.sections[OVER_FITTED]
    assert "training loss is 1.5 and the validation loss 1.25, the accuracies 25.00% and 50.00%" in page.sections[OVER_FITTED]
    assert "n/1" in page.sections[BETTER]
    assert "optim.lr" in page.sections[BETTER]
    assert f"imgrec compare {written.parent}/1 {written}" in page.sections[NEXT]


@pytest.mark.parametrize("files", [True, False])
def test_each_next_command_can_be_typed_as_it_is(tmp_path, files):
    """An image of the test is named where it is a file; of a set in memory there is none to predict."""
    (image := tmp_path / "it's a.png").touch()
    folder = write_run(tmp_path / "n/1", true=[0, 1, 1], predicted=[0, 1, 0], images=[str(image)] * 3 if files else None)
    commands = Page(question_sections(read_run_facts(folder))[-1].html).text.partition("Commands:")[2].splitlines()
    typed = [shlex.split(command) for command in commands]
    assert [words[1] for words in typed] == ["evaluate", *["predict"] * files, "check"]
    for _, command, *words in typed:
        composed = compose_config(command, words)
    assert composed["ckpt"] == str(folder)
    assert not files or typed[1] == ["imgrec", "predict", str(folder), str(image)]


def test_what_a_user_wrote_is_text(written):
    page = read_page(written)
    scripts = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert scripts == ["application/json", None]
    values = "".join(str(value) for _, attributes in page.elements for value in attributes.values())
    assert (page.text + values).count("alert(1)") == (written / "report.html").read_text().count("alert(1)")
    assert page.text.count(NASTY) >= 12
    links = [value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")]
    assert all(link.startswith(("#", "data:image/")) for link in links)
    assert "default-src 'none'" in json.dumps(page.elements)


def test_a_title_and_headings_are_text_and_scripts_and_styles_stand_once():
    sections = [Section(name, NASTY, "<p>x</p>", script="let a = 1;", style="b { color: red }") for name in ("one", "two")]
    page = Page(render("report", NASTY, sections))
    assert page.text.count(NASTY) == 2 + 2 * len(sections)  # title, h1, links, headings
    assert list(page.sections) == ["one", "two"]
    assert page.text.count("let a = 1;") == page.text.count("b { color: red }") == 1


def test_a_name_does_not_turn_what_follows_it():
    assert text("cat\u202e<b>\u2066\x1b") == "cat?&lt;b&gt;??"
    assert text("شجرة (1)") == "\u2068شجرة (1)\u2069"
    assert text("قطة 7 images, شجرة 9") == "\u2068قطة\u2069 7 images, \u2068شجرة\u2069 9"
    assert text("cat\u200f\u061c") == "cat??"
    assert code("imgrec predict 'شجرة <1>'") == "imgrec predict &#x27;شجرة &lt;1&gt;&#x27;", "a command is copied as it is"


def test_ids_are_in_the_page_once(written):
    ids = [attributes["id"] for _, attributes in read_page(written).elements if "id" in attributes]
    assert len(ids) == len(set(ids))


MISSING = {
    "unfinished": lambda folder: write_run(folder, true=[0, 1], predicted=[0, 1], finished=False),
    "no test": lambda folder: write_run(folder, true=[0, 1], predicted=[0, 1], test=False),
    "no table": lambda folder: (write_run(folder, true=[0, 1], predicted=[0, 1]) / "predictions.parquet").unlink() or folder,
    "no probabilities": lambda folder: write_run(folder, true=[0, 1], predicted=[0, 1]),
    "no epoch": lambda folder: (write_run(folder, true=[0, 1], predicted=[0, 1], finished=False) / "metrics.csv").unlink() or folder,
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "section", "said"),
    [
        ("unfinished", "result", "not finished"),
        ("unfinished", "what-next", "resumes"),
        ("unfinished", "is-it-over-fitted", "cannot be told yet"),
        ("no test", "classes", "no test split"),
        ("no test", "result", "too high"),
        ("no table", "reliability", "predictions.parquet is missing"),
        ("no probabilities", "reliability", "has no probabilities"),
        ("no epoch", "curves", "No epoch has ended"),
    ],
)
def test_what_a_run_lacks_is_said_in_its_section(tmp_path, case, section, said):
    folder = MISSING[case](tmp_path / "n/1")
    files = write_report(folder)
    page = read_page(folder)
    assert said in page.sections[section]
    assert set(QUESTIONS) < set(page.sections)
    assert (files.card is None) == (case in ("unfinished", "no epoch"))


def test_what_was_known_of_the_images_is_said_with_the_check_of_the_same_splits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a check.json would be read
    photos = {"data._target_": "imgrec.data.datasets.ImageFolder", "data.root": "my photos", "data.split_seed": 3}
    fault = {"kind": "leak", "number": 7, "what": "train has the same picture", "of_classes": False}
    folder = write_probable_run(tmp_path / "n/1", classes=CLASSES, count=50, settings=photos, data_faults=[fault])
    write_report(folder)
    said = read_page(folder).sections["data"]
    assert "7 leak: train has the same picture" in said
    assert f"imgrec check 'data.root=my photos' data.split_seed=3, then imgrec report {folder}" in said
    mnist = {"data._target_": "imgrec.data.datasets.MNIST", "data.root": "data"}
    write_report(folder := write_probable_run(tmp_path / "n/2", classes=CLASSES, count=50, settings=mnist))
    assert "imgrec check" not in read_page(folder).sections["data"]


def test_a_card_is_what_hugging_face_reads_and_stays_when_it_was_edited(tmp_path, capsys):
    folder = write_probable_run(tmp_path / "n/1", classes=CLASSES, count=100)
    assert cli.main(["report", str(folder)]) == 0
    card = folder / "model_card.md"
    assert capsys.readouterr().out.splitlines() == [f"{folder}/report.html and model_card.md"]
    read = ModelCard(card.read_text())
    true, predicted, _ = recomputed(folder)
    found = {result.metric_type: result.metric_value for result in read.data.eval_results}
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted), abs=1e-6)
    assert (read.data.pipeline_tag, read.data.library_name) == ("image-classification", "imgrec")
    assert "<script>" not in card.read_text()
    for heading in ("Intended use", "Training data", "Evaluation", "Limitations", "How to use"):
        assert f"\n## {heading}\n" in card.read_text()
    write_report(folder)  # as it was written: anew
    edited = card.read_text().replace("For the author", "By me")
    card.write_text(edited)
    assert cli.main(["report", str(folder)]) == 0
    assert "model_card.md was edited" in capsys.readouterr().out
    assert card.read_text() == edited
    assert cli.main(["report", str(folder), "overwrite=true"]) == 0
    assert "By me" not in card.read_text()


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_a_name_in_a_card_is_one_line_without_html(name):
    said = plain(name)
    assert "\n" not in said
    assert not re.search(r"(?<!\\)[<>|`*]", said)


REFUSED = {
    "": ("runs=null", "imgrec report runs/NAME/1"),
    "none": ("runs=none", "no such folder", "runs/NAME/ID"),
    "photos": ("runs=photos", "no run directory", "runs/NAME/ID"),
    "n": ("runs=n", "n/*/"),
    "n/folds_1": ("runs=n/folds_1", "n/folds_1/*/"),
    "n/foreign": ("runs=n/foreign/report.html", "did not write it", "overwrite=true"),
    "n/cut": ("n/cut/result.json", "test.per_class.0.support", "Remove it"),
    "n/changed": ("n/changed/result.json", "test.confusion", "Remove it"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_no_run_is_refused_in_a_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("foreign", "cut", "changed"):
        write_run(tmp_path / "n" / name, true=[0, 1], predicted=[0, 1])
    write_run(tmp_path / "n/folds_1", true=[0, 1], predicted=[0, 1], settings={"folds": 2})
    (tmp_path / "n/foreign/report.html").write_text("<p>mine</p>")
    for name, key, value in (
        ("cut", "per_class", [{"name": "0", "recall": "<b>"}, {"name": "1"}]),
        ("changed", "confusion", [[1]]),
    ):
        file = tmp_path / "n" / name / "result.json"
        result = json.loads(file.read_text())
        file.write_text(json.dumps(result | {"test": result["test"] | {key: value}}))
    assert cli.main(["report", *words.split()]) == 2
    assert_refused(capsys.readouterr().err, *REFUSED[words])


def test_a_training_writes_it(tmp_path, capsys):
    fit([*SMALL, "report=true", f"runs_dir={tmp_path}", "name=n", "id=1"])
    assert f"report in {tmp_path}/n/1/report.html" in capsys.readouterr().out
    page = read_page(tmp_path / "n/1")
    result = json.loads((tmp_path / "n/1/result.json").read_text())
    assert page.figures["accuracy"] == result["test"]["accuracy"]
    assert {cells[0][1] for cells in page.tables["split-table"]} == {"split", "train", "val", "test"}


@pytest.mark.slow  # the line is that of the next test
def test_a_training_whose_report_fails_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("imgrec.report.write.report_page", lambda facts: 1 / 0)
    words = [*SMALL, "report=true", f"runs_dir={tmp_path}", "name=n", "id=1"]
    assert fit(words)["status"] == "finished"
    assert "no report.html was written: ZeroDivisionError" in capsys.readouterr().out
    assert fit(words)["status"] == "finished"
    assert not (tmp_path / "n/1/report.html").exists()


def test_a_report_that_fails_is_a_line_with_what_to_type():
    line = write_or_say(Path("runs/n/a b"), lambda: 1 / 0)
    assert line == "no report.html was written: ZeroDivisionError: division by zero. Type imgrec report 'runs/n/a b'"


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low, span):
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in found)


def test_classes_whose_names_are_no_utf8_have_a_report(tmp_path):
    names = [os.fsdecode(b"m\xe4nner"), "cats"]
    folder = write_probable_run(tmp_path / os.fsdecode(b"n\xe4/1"), classes=names, count=50)
    write_report(folder)
    page = read_page(folder)
    assert {name for (_, name), *_ in page.tables["class-table"][1:]} == {"m?nner", "cats"}
    assert page.figures["ece"] > 0
    assert ModelCard((folder / "model_card.md").read_text()).data.eval_results
    assert read_predictions(folder / "predictions.parquet", names, fix="").classes == tuple(names)
    with raises_error(DataError, tmp_path, "apart", "rename"):
        read_predictions(folder / "predictions.parquet", [*names, os.fsdecode(b"m\xe5nner")], fix="")


@pytest.mark.parametrize("values", [(1.2e-4, 2.1e-4), (3e-8, 2.9e-3), (-0.25, 0.5), (1e6, 4e6), (0.02, 0.08)])
def test_the_numbers_of_an_axis_are_short_and_those_of_its_ticks(values):
    shown = re.findall(r'text-anchor="end">([^<]+)<', line_chart("rate", [ChartLine("rate", [1, 2], values)]))
    assert max(map(len, shown)) <= 7
    low = 0 if 0 <= values[0] < values[1] / 2 else values[0]
    assert [float(number) for number in shown] == pytest.approx(ticks(low, values[1]))


def test_probabilities_of_a_table_come_back_in_the_order_of_the_classes(tmp_path):
    drawn = np.random.default_rng(0).dirichlet([1, 1, 1], 70).astype(np.float32)
    names = np.array(["b", "c", "a"], dtype=object)
    labels = {"true": names[np.arange(70) % 3].tolist(), "predicted": names[drawn.argmax(1)].tolist()}
    of_true = drawn[np.arange(70), np.arange(70) % 3]
    chances = {"probability": drawn.max(1), "true_probability": of_true, "probabilities": drawn}
    write_table(tmp_path / "a.parquet", [{"index": np.arange(70)} | labels | chances])
    read = read_predictions(tmp_path / "a.parquet", names.tolist(), fix="", probabilities=True)
    assert (read.probabilities == drawn).all()
    assert (read.predicted == drawn.argmax(1)).all()
    assert (read.true_probability == of_true).all()
    assert read_predictions(tmp_path / "a.parquet", None, fix="").classes == ("a", "b", "c")
    sorted_names = read.by_name("")
    assert (names[read.true] == np.array(sorted_names.classes, dtype=object)[sorted_names.true]).all()


@pytest.mark.parametrize(("limit", "said"), [(1.0, "found nothing to change"), (40, "trainer.limit_train_batches=40")])
def test_without_a_finding_it_says_whether_epochs_were_cut_short(tmp_path, limit, said):
    folder = write_probable_run(tmp_path / "n/1", classes=CLASSES, count=100, settings={"trainer.limit_train_batches": limit})
    write_report(folder)
    assert said in read_page(folder).sections[NEXT]
    assert ("limit_train_batches=40" in (folder / "model_card.md").read_text()) == (limit == 40)


def test_where_every_image_is_right_nothing_is_advised_and_no_temperature_was_fitted(tmp_path):
    folder = write_run(tmp_path / "n/1", true=[0, 1] * 9, predicted=[0, 1] * 9)
    result = json.loads((folder / "result.json").read_text())
    fitted = {"temperature": 1.0, "reason": "all of 9 validation images are right"}
    diagnosis = [{"rule": "validation too small", "sentence": "validation is too small"}]
    (folder / "result.json").write_text(json.dumps(result | {"calibration": fitted, "diagnosis": diagnosis}))
    names = ["0", "1"] * 9
    chances = {"probability": np.full(18, 0.9), "true_probability": np.full(18, 0.9)}
    write_table(folder / "predictions.parquet", [{"index": np.arange(18), "true": names, "predicted": names} | chances])
    write_report(folder)
    assert "suspects" not in read_page(folder).sections[NEXT]
    (folder / "result.json").write_text(json.dumps(result | {"calibration": fitted}))
    write_report(folder)
    page = read_page(folder)
    assert "Every image of the test is right" in page.sections[NEXT]
    assert "More epochs" not in page.sections[NEXT]
    for said in (page.sections["reliability"], (folder / "model_card.md").read_text()):
        assert "all of 9 validation images are right" in said
        assert "fitted on the validation images" not in said


def test_a_checkpoint_that_was_changed_since_its_test_is_said(tmp_path):
    folder = write_probable_run(tmp_path / "n/1", classes=CLASSES, count=100)
    (file := folder / "checkpoints/best.ckpt").parent.mkdir()
    result = json.loads((folder / "result.json").read_text())

    def saved(value):
        with ZipFile(file, "w") as records:
            records.writestr("best/data/0", value)

    for value in (b"before", b"behind"):
        saved(value)
        entry = {"file": "checkpoints/best.ckpt", "records": records_hash(file)}
        saved(b"before")
        (folder / "result.json").write_text(json.dumps(result | {"measured_file": entry}))
        write_report(folder)
        for said in (read_page(folder).sections["result"], (folder / "model_card.md").read_text()):
            assert ("was changed since" in said) == (value == b"behind")
    later = write_probable_run(tmp_path / "n/2", classes=CLASSES, count=100, seed=1)
    write_report(later)
    assert f"{file} was changed since" in read_page(later).sections[BETTER]


def test_labels_of_a_worst_class_that_was_not_learned_are_not_accused(tmp_path):
    for hits, part in ((0, "may not have learned"), (7, "look whether these labels")):
        folder = tmp_path / f"n/{hits}"
        true, predicted = [0] * 20 + [1] * 10, [0] * 20 + [1] * hits + [0] * (10 - hits)
        write_run(folder, true=[*true, 1] * 4, predicted=[*predicted, 1] * 4)
        names = [[str(label) for label in [*labels, 1] * 4] for labels in (true, predicted)]
        chances = dict.fromkeys(("probability", "true_probability"), np.full(124, 0.9))
        write_table(
            folder / "predictions.parquet", [{"index": np.arange(124), "true": names[0], "predicted": names[1]} | chances]
        )
        write_report(folder)
        assert part in read_page(folder).sections[WHY]
