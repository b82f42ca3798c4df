"""Several runs beside one another: those of one config as one entry, the keys that differ, and who is better than the baseline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.paired import (
    Difference,
    holm,
    mcnemar_exact,
    only_right,
    paired_bootstrap,
    paired_cells,
    seeds_difference,
)
from imgrec.config.annotations import format_value
from imgrec.errors import plural
from imgrec.files import on_progress, resolved
from imgrec.inference.stored_predictions import StoredPredictions
from imgrec.training.config_difference import differing_values
from imgrec.training.stored_run import SharedImages, StoredRun, shared_images

SHOWN_DIFFERENCE = 0.05  # p up to which a difference is called one
NAMES = ("name",)  # keys that say what a run is called


@dataclass(frozen=True)
class Entry:
    """A run, or finished ones that differ in their seed alone."""

    letter: str
    runs: tuple[StoredRun, ...]

    @cached_property
    def predictions(self) -> list[StoredPredictions]:
        """Of each run; fewer than runs where one has none."""
        return [found for run in self.runs if (found := run.comparable) is not None]

    def figures(self, name: str) -> list[float]:
        """A figure of each run's test, none where it has no test."""
        return [float(run.test[name]) for run in self.runs if run.test is not None]


@dataclass(frozen=True)
class Comparison:
    """An entry against the baseline, on the images that all their runs predicted."""

    entry: str  # letter
    baseline: str
    images: int
    tested: int  # images of the larger test
    relabelled: int  # images left out, as the runs have them under different classes
    accuracy: Difference
    macro_f1: Difference | None  # None with several seeds
    only: tuple[int, int] | None  # images that are right with the baseline alone, and with the entry alone
    p: float
    corrected_p: float

    @property
    def shown(self) -> bool:
        """Whether there is a difference."""
        return self.corrected_p <= SHOWN_DIFFERENCE


def letters(count: int) -> list[str]:
    """A, B, ..., Z, AA, AB, ..."""
    found: list[str] = []
    for number in range(count):
        letter, rest = chr(65 + number % 26), number // 26
        found.append((found[rest - 1] if rest else "") + letter)
    return found


def make_entries(runs: Sequence[StoredRun]) -> list[Entry]:
    """The runs in their order. Tested ones that differ in their seed alone are one entry, unless two of them have the same seed."""
    groups: list[list[StoredRun]] = []
    for run in runs:
        same = (group for group in groups if run.test and group[0].test and _differ_in_seed(group[0], run))
        if (found := next(same, None)) is None:
            groups.append([run])
        else:
            found.append(run)
    parts = [[group] if _seeds_differ(group) else [[run] for run in group] for group in groups]
    flat = [group for part in parts for group in part]
    return [Entry(letter, tuple(group)) for letter, group in zip(letters(len(flat)), flat, strict=True)]


def _differ_in_seed(first: StoredRun, second: StoredRun) -> bool:
    return differing_values([first.config, second.config]).keys() <= {"seed", *NAMES}


def _seeds_differ(group: Sequence[StoredRun]) -> bool:
    return len({run.config.get("seed") for run in group}) == len(group)


def entry_values(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """The keys in which entries differ, with the value of each; the seeds of one with several as a list."""
    configs = [
        entry.runs[0].config | {"seed": [run.config.get("seed") for run in entry.runs] if len(entry.runs) > 1 else seed}
        for entry in entries
        for seed in [entry.runs[0].config.get("seed")]
    ]
    return {key: values for key, values in differing_values(configs).items() if key not in NAMES}


def main_values(values: dict[str, list[Any]]) -> dict[str, list[str]]:
    """`entry_values` as they are typed, without those that follow from others: with optim._target_ the keys that one of them has not.

    `optim._target_` is written `optim`, its value as the last part.
    """
    targets = [key.removesuffix("_target_") for key in values if key.endswith("._target_")]
    shown: dict[str, list[str]] = {}
    for key, row in values.items():
        if key.endswith("._target_"):
            shown[key.removesuffix("._target_")] = ["-" if value is None else str(value).rpartition(".")[2] for value in row]
        elif not (key.startswith(tuple(targets)) and None in row):
            shown[key] = [format_value(value) for value in row]
    return shown


def mean_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of a sample), None of one value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def why_not_tested(entry: Entry, baseline: Entry) -> str | None:
    """Why an entry has no test against the baseline, as a sentence; None where it may have one."""
    for each in (baseline, entry):
        if not each.figures("accuracy"):
            if each.runs[0].result is None:
                return f"{each.letter} is not finished: it has no test to compare."
            report = "After imgrec evaluate RUN split=val of both, imgrec report RUN compares their validation images."
            return f"{each.letter} has no test split: it has no test to compare. {report}"
        if len(each.predictions) < len(each.runs):
            return f"{each.letter} has no predictions.parquet: only its figures above can be compared."
    first, second = baseline.predictions[0].classes, entry.predictions[0].classes
    if first != second:
        more = next(
            (
                f" The report of {each.letter} says what became of the old answers."
                for each in (entry, baseline)
                if _is_extended(each)
            ),
            "",
        )
        return f"{entry.letter} has other classes than {baseline.letter} ({len(second)} and {len(first)}): their figures do not compare.{more}"
    return None


def _is_extended(entry: Entry) -> bool:
    return "extended" in (entry.runs[0].result or {})


def compare_entries(
    entries: Sequence[Entry], baseline: Entry, *, resamples: int, seed: int
) -> tuple[list[Comparison], list[str]]:
    """Each entry against the baseline, p corrected by Holm's method; and a sentence for each that has no test."""
    pairs: list[tuple[Entry, SharedImages]] = []
    notes: list[str] = []
    for entry in entries:
        if entry is baseline:
            continue
        if reason := why_not_tested(entry, baseline):
            notes.append(reason)
            continue
        shared = shared_images([*baseline.predictions, *entry.predictions])
        if len(shared.rows[0]) < 2:
            notes.append(
                f"{entry.letter} was tested on other images than {baseline.letter}: only the figures above can be compared."
            )
            continue
        pairs.append((entry, shared))

    def watch(more: int) -> None:
        on_progress.get()("samples of the images", more, resamples * len(pairs))

    found = [_compare(entry, baseline, shared, resamples, seed, watch) for entry, shared in pairs]
    corrected = holm([comparison.p for comparison in found])
    return [Comparison(**vars(comparison) | {"corrected_p": p}) for comparison, p in zip(found, corrected, strict=True)], list(
        dict.fromkeys(notes)
    )


def _compare(
    entry: Entry, baseline: Entry, shared: SharedImages, resamples: int, seed: int, watch: Callable[[int], None]
) -> Comparison:
    tests = [*baseline.predictions, *entry.predictions]
    true = tests[0].true[shared.rows[0]]
    first, second, *more = [test.predicted[rows] for test, rows in zip(tests, shared.rows, strict=True)]
    only: tuple[int, int] | None = None
    macro_f1: Difference | None = None
    if not more:
        classes = len(tests[0].classes)
        cells = paired_cells(true, first, second, classes)
        only = only_right(cells)
        p = mcnemar_exact(*only)
        accuracy, macro_f1 = paired_bootstrap(cells, classes, resamples=resamples, seed=seed, watch=watch)
    else:
        right: NDArray[np.bool_] = np.stack([first, second, *more]) == true
        accuracy, p = seeds_difference(right[: len(baseline.runs)], right[len(baseline.runs) :])
    tested = max(len(test.true) for test in tests)
    return Comparison(entry.letter, baseline.letter, len(true), tested, shared.relabelled, accuracy, macro_f1, only, p, p)


def comparison_sentence(comparison: Comparison) -> str:
    """'B is better than A by 1.2 points (0.3 to 2.1), p = 0.008; macro F1 +1.1 (0.2 to 2.0)'"""
    digits = 1 if comparison.images < 2_000 else 2
    value, low, high = (100 * part for part in comparison.accuracy)
    entry, baseline = comparison.entry, comparison.baseline
    if comparison.shown:
        low, high = (low, high) if value > 0 else (-high, -low)
        said = f"{entry} is {'better' if value > 0 else 'worse'} than {baseline} by {abs(value):.{digits}f} points"
    else:
        said = f"no difference shown between {entry} and {baseline}: {_signed(value, digits)} points"
    said += f" ({low:z.{digits}f} to {high:z.{digits}f}), {_p(comparison.corrected_p)}"
    if comparison.macro_f1 is not None:
        value, low, high = (100 * part for part in comparison.macro_f1)
        said += f"; macro F1 {_signed(value, digits)} ({low:z.{digits}f} to {high:z.{digits}f})"
    if comparison.images + comparison.relabelled < comparison.tested:
        said += f"; on the {comparison.images:,} images that all of them were tested on"
    if comparison.relabelled:
        said += f"; {plural(comparison.relabelled, 'image')} with another class left out"
    return said


def _signed(points: float, digits: int) -> str:
    text = f"{points:+z.{digits}f}"
    return text if float(text) else text.lstrip("+")


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def run_names(runs: Sequence[StoredRun]) -> list[str]:
    """The last parts of each run's path, two or as many as tell the runs apart."""
    parts = [resolved(run.path).parts for run in runs]
    most = max(map(len, parts))
    length = next((n for n in range(2, most) if len({part[-n:] for part in parts}) == len(parts)), most)
    return ["/".join(part[-length:]) for part in parts]


def entry_name(names: Sequence[str]) -> str:
    """The name of an entry from those of its runs: 'digits_resnet/{1,2,3}'."""
    folders, last = zip(*(name.rpartition("/")[::2] for name in names), strict=True)
    if len(names) == 1 or any(one != other for one, other in pairwise(folders)):
        return ", ".join(names)
    shown = last if len(last) <= 4 else (*last[:2], "...", last[-1])
    return f"{folders[0]}/{{{','.join(shown)}}}"
