"""Slices of images: cuts at quantiles, figures that are scipy's and closed forms, what is shown, and what the command says of files."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from error_parts import raises_error
from hypothesis import given
from hypothesis import strategies as st
from marks import fewer
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest, hypergeom
from test_table import IDS, pictures, table_of, write

from imgrec.analysis.slices import (
    MOST_SLICES,
    QUANTILE_PARTS,
    TELLS_NOTHING,
    Slicing,
    measure_slices,
    slice_column,
    slice_numbers,
    slice_texts,
)
from imgrec.data.in_memory import InMemoryImages
from imgrec.errors import ConfigError
from imgrec.inference.image_facts import Sliced, read_slice_columns
from imgrec.inference.slice_table import draw_slices, slices_sentences, slices_table

tables = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).filter(any), min_size=2, max_size=6)


def images_of(table: list[tuple[int, int]]) -> tuple[Slicing, np.ndarray]:
    """The slicing of images of which each slice has (right, wrong), and which are right."""
    codes = np.repeat(np.arange(len(table)), [sum(row) for row in table])
    right = np.concatenate([np.arange(sum(row)) < row[0] for row in table])
    return Slicing("kind", tuple(map(str, range(len(table)))), codes), right


@fewer(6)
@given(tables)
def test_figures_are_those_of_scipy_and_of_closed_forms(table):
    found = measure_slices([(slicing := images_of(table))[0]], slicing[1])
    images, hits = sum(map(sum, table)), sum(right for right, _ in table)
    p = []
    for row, (right, wrong) in zip(found, table, strict=True):
        assert (row.images, row.accuracy) == (right + wrong, right / (right + wrong))
        assert row.rest_accuracy == (hits - right) / (images - row.images)
        method = "exact" if row.images < 40 else "wilson"
        level = 1 - 0.05 / len(table)  # Bonferroni
        theirs = binomtest(right, row.images).proportion_ci(level, method)
        assert row.interval == pytest.approx(tuple(theirs), abs=1e-9)
        law = hypergeom(images, hits, row.images).pmf(np.arange(row.images + 1))
        p.append(law[law <= law[right] * (1 + 1e-7)].sum())  # Fisher: the tables that are no more probable
        assert row.p == pytest.approx(min(1.0, p[-1]), rel=1e-6)
    order = np.argsort(p)
    corrected = np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1)).clip(max=1)  # Holm
    assert [found[row].p_corrected for row in order] == pytest.approx(corrected.tolist(), rel=1e-6)
    for row in found:
        lower, wide = row.accuracy < row.rest_accuracy, row.interval[1] - row.interval[0] > TELLS_NOTHING
        same = "too few images" if wide else "no difference"
        assert row.verdict == (same if row.p_corrected > 0.05 else "worse" if lower else "better")


def test_several_slicings_are_corrected_together_and_one_without_parts_is_left_out():
    slicing, right = images_of([(300, 20), (250, 70)])
    alone = measure_slices([slicing], right)
    whole = Slicing("size", ("784",), np.zeros(len(right), dtype=np.int64))
    assert measure_slices([slicing, whole], right) == alone
    both = measure_slices([slicing, slicing._replace(by="again")], right)
    assert [row.by for row in both] == ["kind", "kind", "again", "again"]
    assert both[1].p_corrected == pytest.approx(2 * alone[1].p_corrected)
    assert both[1].interval[1] - both[1].interval[0] > alone[1].interval[1] - alone[1].interval[0]
    assert [row.verdict for row in alone] == ["better", "worse"]
    assert measure_slices([whole], right) == []


@fewer(12)
@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")) | st.integers(0, 3).map(float), min_size=1, max_size=60))
def test_numbers_are_cut_between_different_values_into_parts_of_about_as_many(numbers):
    values = np.array(numbers)
    found = slice_numbers("x", values)
    known = values[~np.isnan(values)]
    assert ("(no value)" in found.slices) == (len(known) < len(values))
    assert set(found.codes) == set(range(len(found.slices)))
    ends = [(values[found.codes == code].min(), values[found.codes == code].max()) for code in range(len(found.slices))]
    flat = [end for pair in ends for end in pair if not np.isnan(end)]
    assert flat == sorted(flat)
    if len(set(known)) == len(known) >= QUANTILE_PARTS:
        counts = np.bincount(found.codes)[:QUANTILE_PARTS]
        assert counts.max() - counts.min() <= 1


def test_columns_are_numbers_or_texts():
    years = [str(2000 + k) for k in range(10)]
    assert slice_column("year", years).slices == tuple(f"{2000 + k:,} to {2001 + k:,}" for k in range(0, 10, 2))
    assert slice_column("floor", ["1", "2", "2", ""]).slices == ("2", "(no value)", "1")  # few numbers are names
    assert slice_column("year", [*years, "unknown"]).pooled == 0
    assert len(slice_column("year", [*years, "unknown"]).slices) == 11
    assert slice_column("year", [*years, ""]).slices[-1] == "(no value)"
    assert slice_column("year", [*years, "nan", "NaN"]).slices[-1] == "(no value)"  # as tables from pandas have it
    assert slice_column("floor", ["1", "2", "2", "nan"]).slices == ("2", "1", "nan")
    assert slice_column("large", [f"{k}e300" for k in range(6)]).slices[1] == "2e+300"
    many = slice_texts("name", [f"{k:03}" for k in range(50)] + ["049"])
    assert (len(many.slices), many.slices[0], many.slices[-1], many.pooled) == (MOST_SLICES + 1, "049", "30 rarer values", 30)
    assert np.bincount(many.codes).tolist() == [2] + [1] * 19 + [30]


def test_what_is_shown_names_the_worst_slices_and_what_is_left_out():
    slicing, right = images_of([(300, 20), (250, 70), (3, 0)])
    one = Slicing("size", ("784 pixels",), np.zeros(len(right), dtype=np.int64))
    pooled = slicing._replace(by="camera", pooled=7)
    slices = measure_slices([slicing, pooled], right)
    console = Console(file=io.StringIO(), width=120)
    console.print(slices_table(slices, rules=False))
    rows = console.file.getvalue().splitlines()
    assert rows[0].split() == ["slice", "images", "accuracy", "95%", "of", "all", "6", "rest", "p"]
    assert rows[2].split() == ["kind", "1", "320", "78.12%", "(71.5", "to", "83.6)", "93.81%", "<", "0.001", "worse"]
    assert rows[3].endswith("too few images")
    said = slices_sentences(Sliced(slices, [slicing, pooled, one]))
    assert said[0] == "worse than elsewhere: kind 1 (78.1%, elsewhere 93.8%), camera 1 (78.1%, elsewhere 93.8%)"
    assert [line for line in said if "20" in line and "7" in line]
    assert "size" in said[-1]
    assert "784 pixels" in said[-1]
    assert slices_sentences(Sliced([], [one])) == said[-1:]


@pytest.mark.slow
def test_a_picture_shows_them():
    slices = measure_slices([(found := images_of([(300, 20), (250, 70), (3, 0)]))[0]], found[1])
    with Image.open(io.BytesIO(draw_slices(slices, accuracy=0.86, title="where?"))) as picture:
        assert picture.info["Software"] == "imgrec"
        assert picture.width > picture.height > 300


def test_a_column_of_the_table_is_found_by_the_names_of_the_images(tmp_path: Path):
    pictures(tmp_path / "images", [f"{name}.png" for name in IDS])
    cameras = {name: f"camera {int(name) % 4}" for name in IDS}
    rows = [[name, "ab"[int(name) % 2], f" {cameras[name]}"] for name in reversed(IDS)]
    data = table_of(write(tmp_path / "t.csv", [["id", "breed", "camera"], *rows]), tmp_path / "images")
    test = data.split("test")
    found = read_slice_columns(["camera", "size", "type", "brightness"], test, data)
    assert found == {"camera": [cameras[name.decode().removesuffix(".png")] for name in test.names.tolist()]}
    with raises_error(ConfigError, "by=camra", "camera", "by=COLUMN"):
        read_slice_columns(["camra"], test, data)
    with raises_error(ConfigError, "by=camera", "size, brightness, type", "by=brightness"):
        read_slice_columns(["camera"], test, None)
    memory = InMemoryImages(torch.zeros(len(test), 1, 4, 4, dtype=torch.uint8), test.labels)
    with raises_error(ConfigError, "by=type", "by=brightness"):
        read_slice_columns(["type"], memory, None)
    assert read_slice_columns(["size"], memory, None) == {}
