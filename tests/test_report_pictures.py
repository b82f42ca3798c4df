"""The pictures and the confusion matrix of a report."""

import dataclasses
import json
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import fewer
from pictured_run import class_names, write_finished_run
from PIL import Image
from untrained_run import save_untrained_run

from imgrec.analysis.confusions import cluster_order, first_of_each_cell, largest_confusions, most_certain_errors
from imgrec.data.in_memory import InMemoryImages
from imgrec.inference.stored_predictions import StoredPredictions
from imgrec.report import confusion_view, shown_images
from imgrec.report.confusion_view import confusion_section, matrix_data
from imgrec.report.facts import read_run_facts
from imgrec.report.pictures import batch_section, image_sections, picture_sections
from imgrec.report.thumbnails import picture_url, read_thumbnails
from imgrec.train import fit


@fewer(10)
@given(st.randoms(use_true_random=False), st.lists(st.integers(2, 5), min_size=1, max_size=4), st.integers(0, 3))
def test_classes_that_are_confused_stand_together_and_the_others_last(random, sizes, alone):
    numbers = list(range(sum(sizes) + alone))
    random.shuffle(numbers)
    groups = np.split(np.array(numbers), np.cumsum(sizes))  # the last one is those that are alone
    matrix = np.diag(np.full(len(numbers), 50))
    for group in groups[:-1]:
        for one in group:
            for other in set(group.tolist()) - {one}:
                matrix[one, other] = random.randint(1, 9)
    order = cluster_order(matrix).tolist()
    assert sorted(order) == sorted(numbers)
    for group in groups[:-1]:
        places = [order.index(one) for one in group]
        assert max(places) - min(places) == len(group) - 1
    assert order[len(order) - alone :] == sorted(groups[-1].tolist())


rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(0, 1, width=32)), min_size=1, max_size=40)


@fewer(10)
@given(rows, st.integers(1, 3))
def test_each_cell_has_its_first_rows_and_no_cell_a_second_before_another_its_first(rows, most):
    true, predicted, chance = (np.array(column) for column in zip(*rows, strict=True))
    order = np.argsort(-chance, kind="stable")
    of_cell, expected = {}, []
    for row in order.tolist():
        of_cell.setdefault((true[row], predicted[row]), []).append(row)
    for place in range(most):
        expected += sorted((found[place] for found in of_cell.values() if len(found) > place), key=order.tolist().index)
    assert first_of_each_cell(true, predicted, order, most).tolist() == expected


@fewer(10)
@given(rows)
def test_the_most_certain_errors_come_first(rows):
    true, predicted, chance = (np.array(column) for column in zip(*rows, strict=True))
    of_true = chance[::-1] / 2
    expected = sorted(
        (row for row in range(len(rows)) if true[row] != predicted[row]), key=lambda row: (-chance[row], of_true[row])
    )
    assert most_certain_errors(true, predicted, chance, of_true).tolist() == expected


def test_the_largest_confusions_are_those_off_the_diagonal():
    matrix = np.random.default_rng(0).integers(0, 5, (6, 6))
    found = largest_confusions(matrix, 8)
    errors = sorted((-matrix[i, j], i, j) for i in range(6) for j in range(6) if i != j)[:8]
    assert found.tolist() == [[i, j, -count] for count, i, j in errors]
    assert largest_confusions(np.eye(3, dtype=int), 8).shape == (0, 3)


def opened(url: str) -> np.ndarray:
    with Image.open(BytesIO(b64decode(url.partition(",")[2]))) as picture:
        return np.asarray(picture)


def test_small_pictures_are_exact_and_large_ones_small():
    small, large = (torch.randint(0, 255, (channels, 28, 40), dtype=torch.uint8) for channels in (1, 3))
    large = large.repeat_interleave(10, 1).repeat_interleave(10, 2)
    assert (opened(picture_url(small)) == small[0].numpy()[:, :, None]).all()
    assert opened(picture_url(large)).shape == (67, 96, 3)


def test_pictures_stop_at_the_budget_and_leave_out_what_cannot_be_read(tmp_path):
    images = InMemoryImages(torch.randint(0, 255, (100, 3, 32, 32), dtype=torch.uint8), np.zeros(100, dtype=np.int64))
    rows = np.arange(99, -1, -1)
    some = read_thumbnails(images, rows, budget=60_000)
    assert list(some) == rows[: len(some)].tolist()
    assert 60_000 - len(picture_url(images.images[0])) * 2 < sum(map(len, some.values())) <= 60_000


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return read_run_facts(write_finished_run(tmp_path_factory.mktemp("run"), class_names(6), images=72, distinct=4))


def test_the_matrix_in_the_page_is_that_of_the_test_and_its_cells_list_their_own_images(facts):
    images = shown_images.shown_images(facts, facts.confusion)
    section = confusion_section(facts.confusion, facts.classes, images)
    assert "<script>document" not in section.html
    data = json.loads(re.search(r'id="confusion-data">(.*?)</script>', section.html)[1])
    assert tuple(data["names"]) == facts.classes
    found = np.zeros_like(facts.confusion)
    for true, flat in enumerate(data["rows"]):
        found[true, flat[::2]] = flat[1::2]
    assert (found == facts.confusion).all()
    table = facts.predictions
    paths = [path.partition("photos/")[2] for path in table.names.to_pylist()]
    for cell, thousandths, _, name in data["images"]:
        row = paths.index(name)
        assert divmod(cell, 6) == (table.true[row], table.predicted[row])
        assert thousandths == round(1000 * float(table.probability[row]))
    assert {cell for cell, *_ in data["images"]} == set(np.flatnonzero(facts.confusion).tolist())


def test_a_name_from_right_to_left_stands_for_itself_in_a_line(facts):
    renamed = dataclasses.replace(
        facts,
        run=dataclasses.replace(
            facts.run, predictions=facts.predictions._replace(classes=("\u0642\u0637\u0629", *facts.classes[1:]))
        ),
    )
    images = shown_images.shown_images(renamed, facts.confusion)
    html = "".join(section.html for section in picture_sections(images, "of the test"))
    assert "\u0642\u0637\u0629" in html
    assert html.count("\u0642\u0637\u0629") == html.count("\u2068\u0642\u0637\u0629\u2069") == html.count("\u2068")


def test_a_matrix_of_too_many_cells_has_the_largest_and_says_so(monkeypatch, facts):
    monkeypatch.setattr(confusion_view, "MOST_CELLS", 8)
    data = matrix_data(facts.confusion, facts.classes, None)
    counts = [count for flat in data["rows"] for count in flat[1::2]]
    assert len(counts) <= 8
    assert min(counts) > data["least"] == np.sort(facts.confusion[facts.confusion > 0])[-9]


def test_each_picture_is_in_the_page_once_however_often_it_is_shown(facts):
    images = shown_images.shown_images(facts, facts.confusion)
    sections = image_sections(facts, images)
    style = "".join(section.style for section in sections)
    assert re.findall(r"\.t(\d+)\{", style) == [str(row) for row in images.pictures]
    html = "".join(section.html for section in sections)
    assert set(re.findall(r"thumb t(\d+)", html)) <= set(map(str, images.pictures))
    assert set(images.worst.tolist()) | set(images.unsure.tolist()) <= images.pictures.keys()


def test_images_that_are_gone_are_said_in_a_sentence_and_named(facts, tmp_path):
    moved = facts.folder.parent / "photos"
    moved.rename(moved.with_name("elsewhere"))
    images = shown_images.shown_images(facts, facts.confusion)
    moved.with_name("elsewhere").rename(moved)
    html = picture_sections(images, "of the test")[0].html
    assert images.pictures == {}
    assert images.missing in html
    assert images.names[int(images.worst[0])] in html


@pytest.mark.slow
def test_images_in_memory_are_found_by_the_checkpoint(tmp_path):
    folder = save_untrained_run(tmp_path / "run")
    table = StoredPredictions("index", pyarrow.array([5, 7]), *np.zeros((2, 2), dtype=int), ("0",))
    images, places, rows = shown_images.find_in_split(folder, table, np.array([1]))
    assert (places.tolist(), rows.tolist()) == ([7], [1])
    assert list(read_thumbnails(images, places, budget=10_000)) == [7]


def test_a_run_without_a_batch_says_so(tmp_path, facts):
    assert "<img" not in batch_section(tmp_path / "train_batch.png").html
    assert "<img" in batch_section(facts.folder / "train_batch.png").html


def test_a_training_keeps_its_first_batch(small):
    folder = fit(small("id=a", "callbacks.pictures.images=3"), quiet=True).folder
    with Image.open(folder / "train_batch.png") as picture:
        assert picture.size == (3 * (64 + 2) + 2, 64 + 2 + 2)  # of 16 pixels, enlarged, with margins
        assert np.ptp(np.asarray(picture)) == 255
