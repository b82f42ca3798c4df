"""Whether a run is better than the one before it: the last finished run on the same data beside it."""

from pathlib import Path
from typing import NamedTuple

from imgrec.config.plain_data import read_mapping
from imgrec.config.schema import Node
from imgrec.errors import DataError
from imgrec.files import resolved
from imgrec.report.facts import Facts
from imgrec.report.figures import validation_commands
from imgrec.report.measured import OF_VALIDATION, read_measured_run
from imgrec.terminal import percent, percents
from imgrec.training.comparison import (
    Comparison,
    Entry,
    compare_entries,
    comparison_sentence,
    entry_values,
    main_values,
    run_names,
)
from imgrec.training.config_difference import differing_values
from imgrec.training.measured_file import change_sentence
from imgrec.training.stored_run import StoredRun

SEEN = ("num_classes", "image_size", "channels", "mean", "std", "resize", "crop_share", "interpolation", "max_pixels", "scale")
MOST_READ = 50  # runs before this one whose config is looked at: a millisecond each
MOST_CHANGED = 8  # keys that are listed
REPORT_RESAMPLES = 1000  # of the test images, for the interval of the difference


class PreviousComparison(NamedTuple):
    """Whether this run is better than the one before it."""

    verdict: str | None  # in a word; None where there is no test of it
    sentence: str
    changed: list[tuple[str, str, str]]  # the keys that differ: (key, value in the run before, value in this one)
    before: Path | None  # the run before


def previous_run(facts: Facts) -> StoredRun | None:
    """The run in RUNS_DIR/*/* on the same data that was finished last before this one.

    Runs that cannot be read are passed over, and those that were tested where this one was validated.
    """
    own = resolved(facts.folder)
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
                run, measured = read_measured_run(_as_given(folder, facts.folder))
                if measured is facts.measured or run.test is None:
                    return run
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
        return PreviousComparison(
            None, f"There is none: no run in {folder} was finished on the same data before this one.", [], None
        )
    name = run_names([before])[0]
    entries = [Entry(name, (before,)), Entry("this run", (facts.run,))]
    found, notes = compare_entries(entries, entries[0], resamples=REPORT_RESAMPLES, seed=0)
    changed = [(key, before_it, now) for key, (before_it, now) in main_values(entry_values(entries)).items()]
    sentence = comparison_sentence(found[0]) if found else notes[0]
    if before.test is None and facts.measured is OF_VALIDATION:
        evaluate, report = validation_commands(before.path)[0], validation_commands(facts.folder)[1]
        sentence = f"that run was not measured on its validation images. Type {evaluate}, then {report}"
    measured = facts.measured.accuracy[0].upper() + facts.measured.accuracy[1:]
    both = f"{measured}: this run {_accuracy(facts.run)}, {name} before it {_accuracy(before)}."
    since = f" {said}" if (said := change_sentence(before.path, before.result)) is not None else ""
    verdict = _verdict(found[0]) if found else None
    return PreviousComparison(
        verdict, f"{both} {sentence[0].upper()}{sentence[1:].rstrip('.')}.{since}", changed[:MOST_CHANGED], before.path
    )


def _verdict(comparison: Comparison) -> str:
    if not comparison.shown:
        return "Not shown"
    return "Yes" if comparison.accuracy.value > 0 else "No, it is worse"
