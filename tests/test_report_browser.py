"""The report, and the page of a check, in a browser: nothing that axe finds, no network, on paper, by mouse and by keyboard. Needs the extra `browser` and chromium."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictured_run import class_names, write_finished_run
from processes import LIMIT_S

from imgrec.analysis.image_faults import ASPECT, LARGE
from imgrec.report.assemble import report_page
from imgrec.report.facts import Facts, read_run_facts
from imgrec.scan.check_page import Example, check_page, small_jpeg

pytestmark = pytest.mark.slow
A4 = 688  # pixels of 182 mm, which the margins leave
MOST_BYTES = 3_000_000

Open = Callable[..., Any]


def written(folder: Path, classes: int, images: int) -> tuple[Facts, Path]:
    facts = read_run_facts(write_finished_run(folder, class_names(classes), images=images))
    (page := folder / "report.html").write_text(report_page(facts), encoding="utf-8")
    return facts, page


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> tuple[Facts, Path]:
    return written(tmp_path_factory.mktemp("ten"), 10, 1500)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> tuple[Facts, Path]:
    return written(tmp_path_factory.mktemp("thousand"), 1000, 50_000)


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """opened(FILE, dark=..., width=...) is a page without a network, in which no error and no request is left unseen."""
    contexts, wrong = [], []

    def open_page(file: Path, *, dark: bool = False, width: int = 1200, height: int = 900) -> Any:
        context = browser.new_context(color_scheme="dark" if dark else "light", viewport={"width": width, "height": height})
        context.set_default_timeout(1000 * LIMIT_S)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on(
            "request", lambda request: wrong.append(request.url) if not request.url.startswith(("data:", file.as_uri())) else None
        )
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 390])
def test_axe_finds_nothing(opened: Open, ten: tuple[Facts, Path], dark: bool, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'imgrec[browser]'")
    page = opened(ten[1], dark=dark, width=width)
    page.click("[data-cell]")
    result = axe.Axe().run(page)
    assert [(found["id"], [node["html"] for node in found["nodes"]]) for found in result.response["violations"]] == []


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_in_the_page_of_a_check(opened: Open, tmp_path: Path, dark: bool) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'imgrec[browser]'")
    jpeg = small_jpeg(torch.full((3, 40, 60), 120, dtype=torch.uint8))
    kinds = [(ASPECT, 1234, [Example("a.jpg: 1:9", [jpeg])]), (LARGE, 1, [Example("b.jpg and c.jpg", [jpeg, jpeg])])]
    (tmp_path / "check.html").write_text(check_page("Check of photos", "train 9", kinds), encoding="utf-8")
    result = axe.Axe().run(opened(tmp_path / "check.html", dark=dark))
    assert [(found["id"], [node["html"] for node in found["nodes"]]) for found in result.response["violations"]] == []


def test_the_page_of_a_thousand_classes_is_at_most_3_mb(thousand: tuple[Facts, Path]) -> None:
    assert thousand[1].stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("which", ["ten", "thousand"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen(opened: Open, request: pytest.FixtureRequest, which: str, width: int) -> None:
    page = opened(request.getfixturevalue(which)[1], width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("which", ["ten", "thousand"])
def test_no_column_is_cut_off_on_paper(opened: Open, request: pytest.FixtureRequest, which: str) -> None:
    page = opened(request.getfixturevalue(which)[1], width=A4, dark=True)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= A4
    outside = """() => [...document.querySelectorAll("main *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 1
        || (one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX !== "visible")).map((one) => one.outerHTML.slice(0, 200))"""
    assert page.evaluate(outside) == []
    assert page.pdf(format="A4").startswith(b"%PDF")


def cell_point(page: Any, row: int, column: int, size: int) -> tuple[float, float]:
    """Where a cell of the whole matrix is on the canvas."""
    side, gutter = page.locator("#confusion-canvas").evaluate("(one) => [one.clientWidth, Number(one.dataset.gutter)]")
    return gutter + (column + 0.5) * (side - gutter) / size, gutter + (row + 0.5) * (side - gutter) / size


def paths_of(facts: Facts, true: int, predicted: int) -> set[str]:
    table = facts.predictions
    assert table is not None
    rows = np.flatnonzero((table.true == true) & (table.predicted == predicted))
    return {path.partition("photos/")[2] for path in table.names.take(rows).to_pylist()}


def test_a_click_on_a_cell_shows_its_images(opened: Open, ten: tuple[Facts, Path]) -> None:
    facts, file = ten
    page = opened(file)
    order = json.loads(page.inner_text("#confusion-data") or page.text_content("#confusion-data"))["order"]
    x, y = cell_point(page, 2, 3, 10)
    page.locator("#confusion-canvas").click(position={"x": x, "y": y})
    true, predicted = order[2], order[3]
    expected = paths_of(facts, true, predicted)
    heading = page.text_content("#confusion-images h3")
    assert facts.classes[true] in heading
    assert facts.classes[predicted] in heading
    assert f"{len(expected)} image" in heading
    shown = [text.rpartition(",")[0] for text in page.locator("#confusion-images li").all_inner_texts()]
    assert len(shown) == min(12, len(expected)) > 0
    assert set(shown) <= expected
    picture = page.locator("#confusion-images .thumb").first
    assert picture.evaluate("(one) => getComputedStyle(one).backgroundImage").startswith('url("data:image/webp')
    assert picture.get_attribute("aria-label") in expected


def test_a_pair_is_shown_by_its_button(opened: Open, thousand: tuple[Facts, Path]) -> None:
    facts, file = thousand
    page = opened(file)
    button = page.locator("[data-cell]").first
    true, predicted = map(int, button.get_attribute("data-cell").split(","))
    button.click()
    shown = {text.rpartition(",")[0] for text in page.locator("#confusion-images li").all_inner_texts()}
    assert shown
    assert shown <= paths_of(facts, true, predicted)


def test_the_matrix_is_read_by_keyboard(opened: Open, ten: tuple[Facts, Path]) -> None:
    facts, file = ten
    page = opened(file)
    order = json.loads(page.text_content("#confusion-data"))["order"]
    page.focus("#confusion-canvas")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Enter"):  # the first key marks the first cell
        page.keyboard.press(key)
    true, predicted = order[1], order[1]
    heading = page.text_content("#confusion-images h3")
    assert heading == page.text_content("#confusion-cell")
    assert heading.startswith(f"true {facts.classes[true]}, predicted {facts.classes[predicted]}: ")
    assert f"{facts.confusion[true, predicted]} images" in heading


def test_what_the_wheel_zooms_at_stays_where_it_is(opened: Open, ten: tuple[Facts, Path]) -> None:
    page = opened(ten[1])
    canvas = page.locator("#confusion-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = cell_point(page, 4, 5, 10)
    page.focus("#confusion-canvas")
    said = []
    for step in range(2):  # four classes are seen in the second one, and 60 pixels to the right is the same cell still
        for right in (0, 60):
            page.mouse.move(box["x"] + x + right, box["y"] + y)
            said.append(page.text_content("#confusion-cell"))
        page.mouse.move(box["x"] + x, box["y"] + y)
        for _ in range(10 * (1 - step)):
            page.mouse.wheel(0, -100)
        page.wait_for_function("document.getElementById('confusion-canvas').style.touchAction === 'none'")
    assert said[0] == said[2] == said[3] != said[1]


def test_classes_are_ordered_as_chosen(opened: Open, ten: tuple[Facts, Path]) -> None:
    facts, file = ten
    page = opened(file)
    page.select_option("#confusion-order", "listed")
    x, y = cell_point(page, 0, 1, 10)
    page.locator("#confusion-canvas").hover(position={"x": x, "y": y})
    assert page.text_content("#confusion-cell").startswith(f"true {facts.classes[0]}, predicted {facts.classes[1]}: ")


def test_names_are_text_whatever_they_hold(opened: Open, ten: tuple[Facts, Path]) -> None:
    facts, file = ten
    page = opened(file)
    assert page.title() != "changed"
    page.evaluate("document.querySelectorAll('[data-cell]').forEach((button) => button.click())")
    assert page.title() != "changed"
    rows = page.locator(".pairs tbody tr")
    for names, button in zip(rows.all_inner_texts(), rows.locator("[data-cell]").all(), strict=True):
        pair = [facts.classes[int(number)] for number in button.get_attribute("data-cell").split(",")]
        assert names.split("\t")[:2] == pair


def test_the_class_table_sorts_by_each_of_its_columns(opened: Open, thousand: tuple[Facts, Path]) -> None:
    facts, file = thousand
    page = opened(file)
    assert facts.test is not None
    rows = {row["name"]: row for row in facts.test["per_class"]}
    names = page.locator("#class-table tbody tr > :first-child")
    for heading, key in (("recall", "recall"), ("F1", "f1"), ("in test", "support")):
        button = page.locator("#class-table th button", has_text=re.compile(f"^{heading}$"))
        for direction, sign in (("descending", -1), ("ascending", 1)):
            button.click()
            assert button.locator("xpath=..").get_attribute("aria-sort") == direction
            values = [sign * rows[name][key] for name in names.all_text_contents()]
            assert len(values) == 1000
            assert values == pytest.approx(sorted(values), abs=1e-5)  # the page has six digits
    page.locator("#class-table th button").first.click()
    assert set(names.all_text_contents()) == rows.keys()


def test_a_script_finds_the_five_questions(opened: Open, ten: tuple[Facts, Path]) -> None:
    questions = {
        "which-class-is-worst": "Which class is worst?",
        "why": "Why?",
        "is-it-over-fitted": "Is it over-fitted?",
        "is-it-better-than-the-last-run": "Is it better than the last run?",
        "what-next": "What next?",
    }
    page = opened(ten[1])
    assert {id: page.text_content(f"section h2#{id}") for id in questions} == questions
    for id in questions:
        assert page.locator(f"section:has(h2#{id}) :is(p, li)").count()
