"""Names that say what belongs together, what leaked images are worth, and splits that keep groups whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from imgrec.analysis.intervals import EXACT_BELOW, LEVEL
from imgrec.analysis.leaks import leak_worth, unite_groups
from imgrec.analysis.name_groups import groups_across_splits

OTHERS = ["photo_500.jpg", "photo_501.jpg", "photo_502.jpg", "x.jpg", "y.png"]  # of the class


def groups_of(train: list[str], test: list[str]) -> list[list[str]]:
    """The names of each group, of one class."""
    names = [*(f"train/cat/{name}" for name in train), *(f"test/cat/{name}" for name in test)]
    splits = np.array([0] * len(train) + [2] * len(test))
    found = groups_across_splits(np.array(names, dtype=np.bytes_), np.zeros(len(names), dtype=np.int64), splits)
    assert sorted(set(found.tolist()) - {-1}) == list(range(found.max() + 1))
    short = [name.rpartition("/")[2] for name in names]
    return [[short[row] for row in np.flatnonzero(found == group)] for group in range(found.max() + 1)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("img_001_a.jpg", "img_001_b.jpg"),
        ("IMG_20200101_120301_BURST001.jpg", "IMG_20200101_120301_BURST002.JPG"),
        ("IMG_007.jpg", "IMG_007 (2).jpg"),
        ("IMG_007.jpg", "IMG_007-copy.png"),
        ("patient12_03.png", "patient12_4.png"),
        ("video3.frame0001.jpg", "video3.frame0950.jpg"),
        ("2020-01-05 12.30.01.jpg", "2020-01-05 12.30.02.jpg"),
        ("eye-12-left.png", "eye-12-right.png"),
    ],
)
def test_a_burst_that_crosses_splits_is_a_group(one: str, other: str) -> None:
    assert groups_of([one, *OTHERS], [other]) == [[one, other]]
    assert groups_of([one, other, *OTHERS], ["z.jpg"]) == []


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["img_001.jpg", "img_002.jpg"], ["img_003.jpg"]),
        (["cat.1.jpg", "cat.2.jpg"], ["cat.3.jpg"]),
        (["0001.jpg", "0002.jpg"], ["0003.jpg"]),
        (["a3f9c2e1.jpg", "b3f9c2e1.jpg"], ["a3f9c2e2.jpg"]),
        (["Black_Albatross_0001_796111.jpg"], ["Black_Albatross_0002_796112.jpg"]),
        (["0001.jpg", "0002.jpg"], ["0001.jpg"]),  # numbers that start again in each split
        (["1_a.jpg", "1_b.jpg"], ["1_a.jpg", "1_b.jpg"]),
    ],
)
def test_the_usual_names_of_a_class_are_no_group(train: list[str], test: list[str]) -> None:
    assert groups_of([*train, *OTHERS], test) == []


def test_what_most_of_a_class_begins_with_is_no_group() -> None:
    wnid = [f"n01440764_{number}.JPEG" for number in range(9)]
    assert groups_of(wnid[:6], wnid[6:]) == []
    assert groups_of([*wnid[:4], "n2_a.JPEG", *OTHERS[:2]], [*wnid[4:], "n2_b.JPEG"]) == [["n2_a.JPEG", "n2_b.JPEG"]]


def test_names_are_compared_within_a_class() -> None:
    names = np.array(["train/cat/7_a.jpg", "test/dog/7_b.jpg", *(f"train/cat/{k}.jpg" for k in "abcd")], dtype=np.bytes_)
    labels, splits = np.array([0, 1, 0, 0, 0, 0]), np.array([0, 2, 0, 0, 0, 0])
    assert (groups_across_splits(names, labels, splits) == -1).all()
    labels[1] = 0
    assert groups_across_splits(names, labels, splits).tolist() == [0, 0, -1, -1, -1, -1]
    assert groups_across_splits(names[:0], labels[:0], splits[:0]).tolist() == []


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_leaked_images_are_worth_what_is_lost_without_them(rows: list[tuple[bool, bool]]) -> None:
    correct, leaked = np.array(rows, dtype=bool).reshape(-1, 2).T
    worth = leak_worth(correct, leaked)
    assert worth.leaked == sum(leaked)
    for accuracy, interval, kept in (
        (worth.accuracy, worth.interval, [c for c, _ in rows]),
        (worth.clean_accuracy, worth.clean_interval, [c for c, is_leaked in rows if not is_leaked]),
    ):
        if not kept:
            assert (accuracy, interval) == (0, (0, 1))
            continue
        assert accuracy == pytest.approx(sum(kept) / len(kept))
        method = "exact" if len(kept) < EXACT_BELOW else "wilson"
        assert interval == pytest.approx(tuple(binomtest(sum(kept), len(kept)).proportion_ci(LEVEL, method)))


@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 2)), min_size=1, max_size=40), st.randoms())
def test_a_group_is_in_one_of_its_splits_whatever_the_order(rows: list[tuple[int, int]], random: st.DataObject) -> None:
    groups, splits = np.array(rows).T
    names = np.array([f"{row:03}.jpg" for row in range(len(rows))], dtype=np.bytes_)
    united = unite_groups(names, groups, splits, 7)
    alone = groups < 0
    np.testing.assert_array_equal(united[alone], splits[alone])
    for group in set(groups[~alone].tolist()):
        (split,) = set(united[groups == group].tolist())
        assert split in splits[groups == group]
    order = np.array(random.sample(range(len(rows)), len(rows)))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(unite_groups(names[order], groups[order], splits[order], 7), united[order])


def test_a_group_is_in_a_split_as_probably_as_its_images_are() -> None:
    count = 3000
    groups, splits = np.repeat(np.arange(count), 4), np.tile([0, 0, 0, 2], count)
    names = np.array([f"{row:05}.jpg" for row in range(4 * count)], dtype=np.bytes_)
    share = (unite_groups(names, groups, splits, 1) == 2).mean()
    assert share == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / count))
    assert (unite_groups(names, groups, splits, 1) != unite_groups(names, groups, splits, 2)).any()
