"""Whether a run is better than the one before it: the last finished run on the same data beside it."""

from pathlib import Path
from typing import NamedTuple

from imgrec.config.plain_data import read_mapping
from imgrec.config.schema import Node
from imgrec.errors import DataError
from imgrec.report.facts import Facts
from imgrec.terminal import percent, percents
from imgrec.training.comparison import (
    Entry,
    compare_entries,
    comparison_sentence,
    entry_values,
    main_values,
    run_names,
)
from imgrec.training.run_dir import differing_values
from imgrec.training.stored_run import StoredRun, read_run

SEEN = ("num_classes", "image_size", "channels", "mean", "std", "resize", "crop_share", "interpolation", "max_pixels", "scale")
MOST_READ = 50  # runs before this one whose config is looked at: a millisecond each
MOST_CHANGED = 8  # keys that are listed
REPORT_RESAMPLES = 1000  # of the test images, for the interval of the difference


class PreviousComparison(NamedTuple):
    """A sentence, and the keys that differ: (key, value in the run before, value in this one)."""

    sentence: str
    changed: list[tuple[str, str, str]]


def previous_run(facts: Facts) -> StoredRun | None:
    """The run in RUNS_DIR/*/* on the same data that was finished last before this one; runs that cannot be read are passed over."""
    own = facts.folder.resolve()
    finished = (own / "result.json").stat().st_mtime_ns
    older = [
        (time, file.parent)
        for file in own.parent.parent.glob("*/*/result.json")
        if file.parent != own and (time := file.stat().st_mtime_ns) <= finished
    ]
    for _, folder in sorted(older, reverse=True)[:MOST_READ]:
        try:
            config = read_mapping(folder / "config.yaml", {"data": dict}, fix="")
            if "folds" not in config and _same_data(config, facts.config):
                return read_run(_as_given(folder, facts.folder), "runs")
        except DataError:  # cut, or of another program: no run to compare with
            continue
    return None


def _as_given(folder: Path, beside: Path) -> Path:
    """A folder below the runs_dir of another one, as that was written."""
    return beside.parent.parent / folder.parent.name / folder.name


def _same_data(one: Node, other: Node) -> bool:
    """Whether two configs name the same images, which each may see in another size."""
    named = [{"data": {key: value for key, value in each["data"].items() if key not in SEEN}} for each in (one, other)]
    return not differing_values(named)


def _accuracy(run: StoredRun) -> str:
    if run.test is None:
        return "no test"
    return f"{percent(run.test['accuracy'])} {percents(run.test['accuracy_interval'])}"


def compare_with_previous(facts: Facts) -> PreviousComparison:
    """The paired test of both runs' predictions, or why there is none."""
    if (before := previous_run(facts)) is None:
        folder = facts.folder.parent.parent
        return PreviousComparison(f"There is none: no run in {folder} was finished on the same data before this one.", [])
    name = run_names([before])[0]
    entries = [Entry(name, (before,)), Entry("this run", (facts.run,))]
    found, notes = compare_entries(entries, entries[0], resamples=REPORT_RESAMPLES, seed=0)
    changed = [(key, before_it, now) for key, (before_it, now) in main_values(entry_values(entries)).items()]
    sentence = comparison_sentence(found[0]) if found else notes[0]
    both = f"Test accuracy: this run {_accuracy(facts.run)}, {name} before it {_accuracy(before)}."
    return PreviousComparison(f"{both} {sentence[0].upper()}{sentence[1:].rstrip('.')}.", changed[:MOST_CHANGED])
