"""Images whose label is probably wrong, by what networks say that were not trained on them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.image_faults import FaultKind
from imgrec.analysis.label_issues import count_by_answers, count_label_issues, least_probable
from imgrec.config.schema import Split
from imgrec.data.batch import Request
from imgrec.data.folder import ImageFiles
from imgrec.data.image_set import ImageSet
from imgrec.errors import printable, shorten
from imgrec.files import atomic_write
from imgrec.inference.held_out import HeldOut
from imgrec.scan.check_output import MOST_LISTED, findings_content, findings_page, kind_entry
from imgrec.scan.check_page import Example, small_jpeg, thumbnail
from imgrec.scan.terminal_output import print_finding
from imgrec.terminal import Terminal, percent

SUSPECT = FaultKind(
    "label_suspect", False, "a network that was not trained on the image finds its label improbable, the first most of all",
    "Look at them in this order, move what is wrong to its class, and stop where most labels are right.",
)  # fmt: skip
PRINTED = 10  # suspects on the terminal, where nothing else is printed
PICTURES = 60  # suspects on the page


class Suspect(NamedTuple):
    """An image, as the JSON has it. quality: the probability of its label."""

    image: str
    split: str
    label: str
    predicted: str
    probability: float
    quality: float

    def sentence(self) -> str:
        """'test/cat/1.jpg: labelled cat (0.10%), the network says dog (99.21%)'"""
        chances = (
            f"labelled {self.label} ({percent(self.quality)}), the network says {self.predicted} ({percent(self.probability)})"
        )
        return f"{shorten(printable(self.image))}: {chances}"


class Suspects:
    """The suspects among `parts`, the most suspect first. root: of the data, nothing for sets in memory."""

    kind = SUSPECT

    def __init__(self, parts: list[HeldOut], classes: tuple[str, ...], root: str, trained_on: int) -> None:
        """trained_on: images that cannot be looked at, as the networks were trained on them."""
        self.parts, self.trained_on = parts, trained_on
        labels = np.concatenate([part.labels for part in parts])
        predicted, probability, quality = (
            np.concatenate([getattr(part.predictions, name) for part in parts])
            for name in ("predicted", "probability", "true_probability")
        )
        if all(part.predictions.probabilities.shape[1] for part in parts):
            every = np.concatenate([part.predictions.probabilities for part in parts])
            self.estimated = count_label_issues(labels, every)
        else:
            self.estimated = count_by_answers(labels, predicted, probability, quality, len(classes))
        ranked = least_probable(quality, self.estimated)
        self.rows: NDArray[np.int64] = ranked[predicted[ranked] != labels[ranked]]
        shown = self.rows[:MOST_LISTED]
        self._part, self._place = _places(parts, shown)
        names = np.empty(len(shown), dtype=object)
        for number, part in enumerate(parts):
            here = self._part == number
            names[here] = part.names(self._place[here], root)
        self.listed = [
            Suspect(name, parts[part].split, classes[labels[row]], classes[predicted[row]], float(probability[row]), float(quality[row]))
            for row, name, part in zip(shown.tolist(), names.tolist(), self._part.tolist(), strict=True)
        ]  # fmt: skip

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> dict[Split, int]:
        """How many images of each split were looked at."""
        return {part.split: len(part.labels) for part in self.parts}

    @property
    def sentences(self) -> list[str]:
        return [suspect.sentence() for suspect in self.listed]

    def looked_at(self) -> str:
        """'labels: 504 images that the network was not trained on (val 144, test 360) looked at'"""
        held_out = ", ".join(f"{split} {size:,}" for split, size in self.sizes.items())
        images = f"{sum(self.sizes.values()):,} images that the network was not trained on ({held_out})"
        said = f"labels of {images}: {f'{self.count:,} are suspect' if self.count else 'none is suspect'}"
        if not self.trained_on:
            return said
        return (
            f"{said}. It has learned those of the {self.trained_on:,} images of train, so these are not looked at: with "
            "imgrec train folds=5 they are"
        )

    def content(self) -> dict[str, Any]:
        """What the JSON has of the kind."""
        entry = kind_entry(self, examples=self.sentences[:PRINTED], images=[suspect.image for suspect in self.listed])
        suspects = [suspect._asdict() for suspect in self.listed]
        return {**entry, "looked_at": self.sizes, "not_looked_at": self.trained_on, "suspects": suspects}

    def examples(self) -> list[Example]:
        """The first of them with their pictures."""
        places = zip(self.listed[:PICTURES], self._part.tolist(), self._place.tolist(), strict=False)
        return [
            Example(suspect.sentence(), [_picture(self.parts[number].images, int(self.parts[number].predictions.indices[place]))])
            for suspect, number, place in places
        ]


def _places(parts: list[HeldOut], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The part of each row of all parts one after another, and its row there."""
    starts = np.cumsum([0, *(len(part.labels) for part in parts)])
    number = np.searchsorted(starts, rows, side="right") - 1
    return number, rows - starts[number]


def write_suspects(suspects: Suspects, name: str, out: Path, page: Path, terminal: Terminal) -> None:
    """The terminal, the JSON and the page of data without image files, where there is nothing else to check."""
    terminal.say(suspects.looked_at())
    if suspects.count:
        print_finding(suspects, terminal, PRINTED)
    terminal.say()
    atomic_write(out, json.dumps(findings_content(name, suspects.sizes, None, [], [suspects.content()]), indent=1))
    sections = [(suspects.kind, suspects.count, suspects.examples())] * bool(suspects.count)
    atomic_write(page, findings_page(name, suspects.looked_at(), {}, [], sections))
    terminal.say(f"{out} has all of them, {page} pictures")


def _picture(images: ImageSet, row: int) -> bytes | None:
    """A small JPEG of an image; None where it cannot be read."""
    if isinstance(images, ImageFiles):
        return thumbnail(images, row)
    found = images[Request(0, np.array([row]), 1)].images
    return small_jpeg(found[0]) if len(found) else None
