"""The five questions of a report, each answered from the run's figures: the ids of the headings stay, so that a script finds them."""

import os
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

import numpy as np

from imgrec.analysis.diagnosis import AFTER_BEST, HALF, OVER_FITTED_RULE
from imgrec.errors import plural
from imgrec.html_page import Section, code, text
from imgrec.paths import suspects_command
from imgrec.report.facts import Facts
from imgrec.report.figures import missing_test, validation_commands
from imgrec.report.measured import OF_TEST, OF_VALIDATION
from imgrec.report.previous import PreviousComparison, compare_with_previous
from imgrec.terminal import percent, percents

WORST_CLASS, WHY, OVER_FITTED = "which-class-is-worst", "why", "is-it-over-fitted"
BETTER, NEXT = "is-it-better-than-the-last-run", "what-next"
RARE = 0.5  # of the median class' training images: fewer are few
SURE = 0.7  # mean probability of wrong answers from which on the network is sure of them
NOTHING_FOUND = (
    "The rules of the diagnosis found nothing to change. More epochs, another network, <code>weights=DEFAULT</code> or more images may "
    "still help: change one thing at a time, and the report of the next run says whether it is better."
)
OF_SOUP = (
    "A mean of weights has no epochs of its own. It may get better with more runs that begin with the same trained weights, "
    "such as other seeds: <code>imgrec soup</code> with all of them says whether it does."
)
MOST_RIVALS = 3  # classes that the worst one is confused with


def question_sections(facts: Facts) -> list[Section]:
    """In the order in which they are asked."""
    comparison = None if facts.test is None else compare_with_previous(facts)
    return [
        Section(WORST_CLASS, "Which class is worst?", _worst(facts)),
        Section(WHY, "Why?", _why(facts)),
        Section(OVER_FITTED, "Is it over-fitted?", _over_fitted(facts)),
        Section(BETTER, "Is it better than the last run?", _better(facts, comparison)),
        Section(NEXT, "What next?", _next(facts, comparison)),
    ]


def worst_class(facts: Facts) -> dict[str, Any] | None:
    """The row of the class with the lowest F1, of equal ones the lower recall; None where all are right, and where there are no figures."""
    rows = [row for row in (facts.test or {}).get("per_class", []) if row["support"]]
    worst = min(rows, key=lambda row: (row["f1"], row["recall"]), default=None)
    return worst if worst is not None and worst["f1"] < 1 else None


def _worst(facts: Facts) -> str:
    if facts.test is None:
        return missing_test(facts)
    if (worst := worst_class(facts)) is None:
        return f"<p>None: every image {facts.measured.of} is right.</p>"
    said = (
        f"<p><b data-class>{text(worst['name'])}</b>: of its {_images(worst['support'])} {percent(worst['recall'])} "
        f"{percents(worst['recall_interval'])} are found (recall), and {percent(worst['precision'])} of the images that are called "
        f"{text(worst['name'])} are right (precision). Its F1, both in one figure, is the lowest: {percent(worst['f1'])}. "
        '<a href="#classes">All classes</a></p>'
    )
    rivals = _not_told_apart(facts, worst)
    if rivals:
        said += (
            f'<p class="soft">Its interval overlaps that of {plural(rivals, "other class", "es")} with errors: on other images one of them '
            "may be the worst.</p>"
        )
    return said


def _images(count: int, kind: str = "image") -> str:
    return f"{count:,} {kind}{'s' * (count != 1)}"


def _not_told_apart(facts: Facts, worst: Mapping[str, Any]) -> int:
    """How many other classes with errors may have as low a recall."""
    assert facts.test is not None
    rows = [row for row in facts.test["per_class"] if row["support"] and row["recall"] < 1 and row["name"] != worst["name"]]
    return sum(row["recall_interval"][0] <= worst["recall_interval"][1] for row in rows)


def _why(facts: Facts) -> str:
    if facts.test is None or facts.confusion is None:
        return missing_test(facts)
    if (worst := worst_class(facts)) is None:
        return f"<p>There is nothing to explain: every image {facts.measured.of} is right.</p>"
    place = facts.classes.index(worst["name"])
    reasons = [
        *_taken_for(facts, place),
        *_few_images(facts, worst),
        *_how_sure(facts, place, worst["recall_interval"][0] > HALF),
    ]
    items = "".join(f"<li>{reason}</li>" for reason in reasons)
    return f"<p>What the figures show of {text(worst['name'])}:</p><ul>{items}</ul>"


def _taken_for(facts: Facts, place: int) -> list[str]:
    """With which classes it is confused, in both directions."""
    assert facts.confusion is not None
    said = []
    for counts, what in (
        (facts.confusion[place], "of its images {} called another class: {}"),
        (facts.confusion[:, place], "of other classes' images {} called so: {}"),
    ):
        others = counts.copy()
        others[place] = 0
        most = [k for k in np.argsort(-others, kind="stable")[:MOST_RIVALS].tolist() if others[k]]
        if most:
            wrong, more = int(others.sum()), ", ..." * (int((others > 0).sum()) > len(most))
            named = ", ".join(f"{text(facts.classes[k])} ({others[k]:,})" for k in most) + more
            said.append(f"{wrong:,} {what.format('are' if wrong > 1 else 'is', named)}")
    return said


def _few_images(facts: Facts, worst: Mapping[str, Any]) -> list[str]:
    said = []
    if counts := facts.images.get("train", {}):
        own, median = counts.get(worst["name"], 0), float(np.median(list(counts.values())))
        if own < RARE * median:
            said.append(f"It is rare: {_images(own, 'training image')}, where the median class has {median:,.0f}.")
        else:
            said.append(f"It is not rare: {_images(own, 'training image')}, where the median class has {median:,.0f}.")
    low, high = worst["recall_interval"]
    if high - low > 0.2:
        said.append(
            f"Only {_images(worst['support'])} {facts.measured.of} show it, so part of it may be chance: recall {percent(worst['recall'])} {percents(worst['recall_interval'])}."
        )
    return said


def _how_sure(facts: Facts, place: int, is_known: bool) -> list[str]:
    """is_known: whether surely more than half of its images are right."""
    found = facts.predictions
    if found is None or found.probability is None:
        return []
    missed = (found.true == place) & (found.predicted != place)
    if not missed.any():
        return []
    mean = float(found.probability[missed].mean(dtype=np.float64))
    if mean >= SURE:
        look = (
            "look whether these labels are right" if is_known else "it may not have learned this class, whose labels may be right"
        )
        return [f"The network is sure of its wrong answers ({mean:.0%} on average): {look}."]
    return [f"The network is unsure where it is wrong ({mean:.0%} on average): the images are hard, or too few."]


def findings(facts: Facts) -> list[dict[str, str]]:
    """Of the diagnosis at the end of the run: rule and sentence."""
    return [row for row in (facts.result or {}).get("diagnosis") or [] if row.get("rule") and row.get("sentence")]


def _over_fitted(facts: Facts) -> str:
    rows = [row for row in facts.run.epochs if {"train/loss", "val/loss", "train/accuracy", "val/accuracy"} <= row.keys()]
    if not rows:
        if "soup" in facts.config:
            return "<p>A mean of weights was not trained itself: the reports of its runs answer this.</p>"
        return "<p>No epoch has both a training and a validation loss: it cannot be told.</p>"
    found = next((row["sentence"] for row in findings(facts) if row["rule"] == OVER_FITTED_RULE), None)
    best, last = min(rows, key=lambda row: row["val/loss"]), rows[-1]
    gap = (
        f"In the last epoch the training loss is {last['train/loss']:.3g} and the validation loss {last['val/loss']:.3g}, the accuracies "
        f"{percent(last['train/accuracy'])} and {percent(last['val/accuracy'])}; the validation loss was lowest in epoch {best['epoch']:.0f} of {len(rows)}."
    )
    said = '<b class="good">No sign of it.</b>'
    if found:
        said = f'<b class="bad">Yes</b>: {text(found)}'
    elif "diagnosis" not in (facts.result or {}) or len(rows) <= AFTER_BEST:
        said = "<b>It cannot be told yet</b>: the diagnosis looks at a finished run of more epochs."
    note = "Figures of training are of augmented images while the weights changed, so they may be worse than those of validation."
    return f'<p>{said}</p><p>{gap}</p><p class="soft">{note} <a href="#curves">The curves</a></p>'


def _better(facts: Facts, comparison: PreviousComparison | None) -> str:
    if comparison is None:
        return missing_test(facts)
    keys = ", ".join(f"<code>{code(key)}={code(now)}</code> (was {text(before)})" for key, before, now in comparison.changed)
    changed = f"<p>What differs in the config: {keys}.</p>" if keys else ""
    if comparison.verdict is None:
        return f"<p>{text(comparison.sentence)}</p>{changed}"
    note = (
        "In brackets are 95% intervals. p says how often chance alone makes such a difference, were both equally good: up to 0.05 the "
        "difference counts as shown. Not shown does not mean equal: more test images tell more."
    )
    return f'<p><b>{comparison.verdict}.</b> {text(comparison.sentence)}</p>{changed}<p class="soft">{note}</p>'


def _next(facts: Facts, comparison: PreviousComparison | None) -> str:
    found = findings(facts)
    held = (facts.result or {}).get("held_back")
    advice = [row["sentence"] for row in found] + ([str(held)] if held else [])
    if facts.result is None:
        return "<p>Start the same command again: it resumes the run where it was saved.</p>"
    items = "".join(f"<li>{_advice(sentence)}</li>" for sentence in advice)
    said = "What the diagnosis says:" if found else _without_finding(facts)
    commands = code("\n".join(_commands(facts, comparison)))
    return f"<p>{said}</p>{f'<ul>{items}</ul>' if items else ''}<p>Commands:</p><pre>{commands}</pre>"


def _without_finding(facts: Facts) -> str:
    if "soup" in facts.config:
        return OF_SOUP
    if facts.test is not None and facts.test["accuracy"] == 1:
        return f"Every image {facts.measured.of} is right: only more images, or harder ones, can show what is still to gain."
    if facts.cut_short:
        return f"Each epoch was cut short by <code>{code(facts.cut_short)}</code>: leave it out to train on all images."
    return NOTHING_FOUND


def _advice(sentence: str) -> str:
    """A sentence of the diagnosis as HTML, its command as such."""
    said, colon, command = (sentence[0].upper() + sentence[1:]).partition(": imgrec ")
    return f"{text(said)}: <code>imgrec {text(command)}</code>" if colon else text(said)


def _commands(facts: Facts, comparison: PreviousComparison | None) -> Sequence[str]:
    folder, table = facts.quoted, facts.predictions
    image = table.names[0].as_py() if table is not None and table.key == "path" else ""
    predict = [f"imgrec predict {folder} {quote(image)}"] if os.path.isfile(image) else []
    if facts.test is None:
        return [*validation_commands(facts.folder), *predict]
    compare = []
    if comparison is not None and comparison.before is not None and facts.measured is OF_TEST:
        compare = [f"imgrec compare {quote(str(comparison.before))} {folder}"]
    suspects = [suspects_command(facts.folder)] if worst_class(facts) else []
    evaluate = f"imgrec evaluate {folder}{' split=val' * (facts.measured is OF_VALIDATION)}"
    return [evaluate, *predict, *suspects, *compare]
