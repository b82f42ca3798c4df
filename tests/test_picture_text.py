"""Class names in pictures: in a font that has their letters, else as numbers with a legend; matplotlib's warning of a box is an error here."""

import re
from functools import cache

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager

from imgrec.data.in_memory import InMemoryImages
from imgrec.inference import picture_text
from imgrec.inference.confusion_matrix import draw_confusion_matrix
from imgrec.inference.metrics import make_report
from imgrec.inference.picture_text import class_labels, drawn_text
from imgrec.inference.prediction_table import PredictionFiles
from imgrec.inference.split_predictions import SplitPredictions, write_predictions

pytestmark = pytest.mark.usefixtures("drawn")

CAT, DOG, PARROT = "\u732b", "\u72ac", "\u9e66\u9e49"
NAMES = ("cat", CAT, "\u041a\u043e\u0442", DOG, "a_1^$x$", f"{PARROT} \u0645\u0631\u062d\u0628\u0627", "bad\udcff\x1b[31m")


def make_font(path, family, letters):
    pen = TTGlyphPen(None)
    pen.moveTo((50, 0))
    for point in ((50, 800), (900, 800), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    names = {ord(letter): f"u{ord(letter):x}" for letter in letters}
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", *names.values()])
    font.setupCharacterMap(names)
    font.setupGlyf(dict.fromkeys([".notdef", *names.values()], square))
    font.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return str(path)


@pytest.fixture
def machine(monkeypatch):
    """machine(FILE, ...): only these fonts are installed, and matplotlib's own."""

    def install(*files):
        own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(files))
        picture_text._installed_fonts.cache_clear()

    yield install
    picture_text._installed_fonts.cache_clear()


def draw_all(tmp_path):
    """The confusion matrix and the contact sheet of NAMES."""
    count = len(NAMES)
    report = make_report(np.eye(count, dtype=np.int64), top5_hits=0, loss=0.0, classes=NAMES)
    chances = np.full(count, 0.5, np.float32)
    wrong = SplitPredictions(np.arange(count), np.roll(np.arange(count), 1), chances, chances, np.zeros((count, 0), np.float32))
    images = InMemoryImages(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), np.arange(count))
    files = PredictionFiles(tmp_path / "e.csv", tmp_path / "e.png", tmp_path / "p.parquet")
    write_predictions(files, wrong, images, NAMES)
    return draw_confusion_matrix(report, title=f"{CAT}: $100% of $ right"), files.sheet.read_bytes()


def test_without_a_font_names_are_numbers_with_a_legend_in_ascii(machine, tmp_path):
    machine()
    labels, legend, fonts = class_labels(NAMES, width=24, line=80)
    assert labels == ["cat", "#1", NAMES[2], "#3", NAMES[4], "#5", "bad??[31m"]
    assert legend == r"#1=\u732b; #3=\u72ac; #5=\u9e66\u9e49 \u0645\u0631\u062d\u0628\u0627"
    assert (fonts, drawn_text(CAT)[0]) == (["DejaVu Sans"], r"\u732b")
    assert class_labels(NAMES, [0, 3], width=24, line=80)[:2] == (["cat", "#3"], r"#3=\u72ac")
    assert all(picture.startswith(b"\x89PNG") for picture in draw_all(tmp_path))


@pytest.mark.slow
def test_fonts_of_the_machine_are_found_though_matplotlib_has_not_listed_them(machine, tmp_path):
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    files = [
        make_font(tmp_path / f"{name}.ttf", f"Test {name}", letters) for name, letters in (("cat", CAT), ("dog", DOG + "\u0416"))
    ]
    machine()
    without = draw_all(tmp_path)
    machine(str(tmp_path / "damaged.ttf"), *files)
    labels, legend, fonts = class_labels(NAMES, width=24, line=80)
    assert [labels[1], labels[3], labels[5]] == [CAT, DOG, "#5"]
    assert "#5=" in legend
    assert "#3=" not in legend
    assert fonts == ["DejaVu Sans", "Test cat", "Test dog"]
    assert drawn_text(CAT + DOG) == (CAT + DOG, fonts)
    assert all(one != other for one, other in zip(draw_all(tmp_path), without, strict=True))


def test_a_font_with_a_box_for_every_letter_is_none(machine, tmp_path):
    machine(make_font(tmp_path / "last.ttf", "Last Resort High-Efficiency", CAT))
    assert class_labels([CAT], width=24, line=80).labels == ["#0"]


@cache
def letters_of(family):
    return set(TTFont(font_manager.findfont(family), fontNumber=0).getBestCmap())


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5), st.integers(6, 30))
def test_every_letter_of_a_label_is_in_a_font_and_every_name_that_has_none_is_in_the_legend(names, width):
    labels, legend, fonts = class_labels(names, width=width, line=60)
    have = set().union(*map(letters_of, fonts))
    assert {ord(letter) for label in labels for letter in label} <= have
    assert legend.isascii()
    numbered = [number for number, (label, name) in enumerate(zip(labels, names, strict=True)) if label == f"#{number}" != name]
    assert [int(number) for number in re.findall(r"(?:^|; ?\n?)#(\d+)=", legend)] == numbered
