"""The report of a run: what is in it, and that what a user wrote is text in it."""

from html.parser import HTMLParser

import numpy as np

from imgrec.inference.prediction_table import write_table
from imgrec.inference.stored_predictions import read_predictions
from imgrec.report.page import Section, render

NASTY = "<script>alert(1)</script> a&\"b' 数字"


class Page(HTMLParser):
    """The text and the elements of a page."""

    def __init__(self, page):
        super().__init__()
        self.text, self.elements = "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_a_title_and_headings_are_text_and_scripts_and_styles_stand_once():
    sections = [Section(name, NASTY, "<p>x</p>", script="let a = 1;", style="b { color: red }") for name in ("one", "two")]
    page = Page(render(NASTY, sections))
    assert page.text.count(NASTY) == 2 + 2 * len(sections)  # title, h1, links, headings
    assert [attributes["id"] for tag, attributes in page.elements if tag == "h2"] == ["one", "two"]
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert page.text.count("let a = 1;") == page.text.count("b { color: red }") == 1


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
