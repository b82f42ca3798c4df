"""What a report makes of files that somebody edited: an edited result.json is refused by its key, another check.json is none."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from error_parts import raises_error
from written_runs import write_probable_run

from imgrec.errors import DataError
from imgrec.report.write import write_report
from imgrec.training.stored_run import read_run

RESULT = {
    "best": {"epoch": 1},
    "command": "imgrec train",
    "left_out": ["a.jpg"],
    "images": {"train": {"a": 9, "b": 9}},
    "time_shares": {"compute": 1.0},
    "data_faults": [{"kind": "leak", "number": 3, "what": "copies", "of_classes": False}],
    "diagnosis": [{"rule": "rate", "sentence": "too high"}],
    "calibration": {"temperature": 1.5, "test": {"before": {"equal_width": {"calibration_error": 0.1}}}},
}
EDITS = {
    "train_seconds": math.nan,
    "best.epoch": "one",
    "command": 3,
    "parameters": -1,
    "flops": [],
    "versions": "2",
    "left_out": 3,
    "images.train": None,
    "images.train.a": "9",
    "time_shares.compute": math.inf,
    "data_faults.0.what": None,
    "diagnosis": [None],
    "diagnosis.0.sentence": 5,
    "calibration": [],
    "calibration.temperature": 0,
    "calibration.test.before": None,
    "calibration.test.before.equal_width.calibration_error": "<b>",
    "test.accuracy": -1,
    "test.accuracy_interval": [],
    "test.macro_precision": "x",
    "test.macro_f1_interval": [0, None],
    "test.log_loss": {},
    "test.per_class.0.f1": 1.5,
    "test.per_class.1.recall": math.nan,
}


def edit(node, path, value):
    key, _, below = path.partition(".")
    place = int(key) if isinstance(node, list) else key
    if below:
        edit(node[place], below, value)
    else:
        node[place] = value


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_probable_run(tmp_path_factory.mktemp("runs") / "n/1", classes=["a", "b"], count=30, **RESULT)


def refuse(run, path, value, *said):
    whole = (run / "result.json").read_text()
    content = json.loads(whole)
    edit(content, path, value)
    (run / "result.json").write_text(json.dumps(content))
    try:
        with raises_error(DataError, run / "result.json", *said, "Remove it"):
            write_report(run)
    finally:
        (run / "result.json").write_text(whole)


def test_a_value_of_another_kind_is_named(run):
    for path, value in EDITS.items():
        refuse(run, path, value, path, "expected")


@pytest.mark.parametrize(("path", "value"), [("train_seconds", math.inf), ("test.accuracy_interval", [0.5])])
def test_a_comparison_refuses_it_too(run, path, value):
    whole = (run / "result.json").read_text()
    content = json.loads(whole)
    edit(content, path, value)
    (run / "result.json").write_text(json.dumps(content))
    try:
        with raises_error(DataError, run / "result.json", path, "expected"):
            read_run(run, "runs")
    finally:
        (run / "result.json").write_text(whole)


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("test.accuracy", 1.0, "test.accuracy=1.0"),
        ("test.confusion.0.0", -1, "test.confusion"),
        ("test.confusion.0", [1], "test.confusion"),
        ("test.per_class.0.support", 10**30, "test.per_class"),
    ],
)
def test_figures_that_are_not_those_of_the_confusion_matrix_are_refused(run, path, value, key):
    refuse(run, path, value, key)


def test_what_a_result_lacks_is_not_known(run):
    whole = (run / "result.json").read_text()
    content = json.loads(whole)
    for key in RESULT:
        del content[key]
    (run / "result.json").write_text(json.dumps(content))
    write_report(run)
    del content["test"]
    (run / "result.json").write_text(json.dumps(content))
    write_report(run)
    (run / "result.json").write_text(whole)


FINDING = {"kind": "leak", "count": 2, "what": "copies", "examples": ["a.jpg"]}


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"imgrec": "check", "findings": [null], "faults": 1}',
        *(json.dumps({"imgrec": "check", "faults": 2, "findings": [FINDING | {key: "x"}]}) for key in ("count", "examples")),
    ],
    ids=["deep", "null", "count", "examples"],
)
def test_a_check_of_another_program_is_none(run, content):
    (run / "check.json").write_text(content)
    write_report(run)
    assert "<h3>Check</h3>" not in (run / "report.html").read_text()
    (run / "check.json").write_text(json.dumps({"imgrec": "check", "faults": 2, "findings": [FINDING]}))
    write_report(run)
    assert "2 leak: copies" in (run / "report.html").read_text()


TABLES = {
    "half": lambda table: table.slice(0, 15),
    "no rows": lambda table: table.slice(0, 0),
    "two columns of a name": lambda table: table.append_column("true", table["true"]),
    **{
        f"{column}={value}": lambda table, column=column, value=value: table.set_column(
            table.column_names.index(column), column, pa.array([value] * len(table))
        )
        for column, value in [
            ("index", "1"), ("true", None), ("predicted", 1.5), ("probability", 7), ("probability", math.nan),
            ("true_probability", -1.0), ("probabilities", 0.5), ("probabilities", [0.5]),
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("change", TABLES)
def test_an_edited_table_is_refused(run, change):
    file = run / "predictions.parquet"
    whole = file.read_bytes()
    pq.write_table(TABLES[change](pq.read_table(file)), file)
    try:
        with raises_error(DataError, file, "Remove it"):
            write_report(run)
    finally:
        file.write_bytes(whole)
