"""The files of imgrec explain: a table, a picture of each image, and a contact sheet of the first of them."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imgrec.errors import printable
from imgrec.inference.contact_sheet import TILE, draw_contact_sheet, legend_letters
from imgrec.inference.explanations import METHOD_NAMES, ExplainedMap, Explainer, Explanation
from imgrec.inference.overlay import draw_overlay, enlarged
from imgrec.inference.picture_text import class_labels, find_fonts, shortened
from imgrec.inference.prediction_table import PredictionRow, six_digits
from imgrec.inference.training_neighbours import Neighbour
from imgrec.terminal import percent

SHEET_IMAGES = 20  # more make a sheet that no screen shows
CAPTION_WIDTH = 20  # letters below a picture: digits have 7 of its 144 pixels
LAYER_WIDTH = 12  # of those, behind "Grad-CAM, ", whose letters are narrow
PICTURE_TILE = 224  # pixels of a picture in the file of one image
LEGEND = (
    "supported: hiding the tenth of the image with the highest values (of Grad-CAM in the line) lowers the probability "
    "more than hiding 99 in 100 areas of its shape (p), and the map is another with random weights (alike: rank correlation)"
)


class ExplainedImage(NamedTuple):
    """An image file, and why the network says what it says."""

    path: str
    picture: str  # the name of its picture
    explanation: Explanation
    neighbours: Sequence[Neighbour] = ()
    true: str | None = None  # the class of its label, of an image of a run's test


def table_rows(image: ExplainedImage, explainer: Explainer) -> list[PredictionRow]:
    """A row for each map."""
    classes, said = explainer.predictor.classes, image.explanation
    near = "; ".join(f"{one.name} ({classes[one.label]}, {one.distance:.4f})" for one in image.neighbours)
    return [
        {
            "path": image.path,
            "class": classes[said.label],
            "probability": six_digits(said.probability),
            "true": image.true,
            "method": one.method,
            "layer": explainer.layer_of(one.method),
            **_tested(one),
            "picture": image.picture,
            "neighbours": near or None,
            "error": None,
        }
        for one in said.maps
    ]


def _tested(one: ExplainedMap) -> dict[str, Any]:
    hiding, verdict = one.verdict.hiding, one.verdict
    figures = (None,) * 3 if hiding is None else tuple(map(six_digits, hiding))
    return {
        **dict(zip(("p", "drop", "random_drop"), figures, strict=True)),
        "similarity": six_digits(verdict.similarity),
        "verdict": verdict.sentence,
    }


def failed_row(path: str, error: str) -> PredictionRow:
    """Of a file that cannot be read."""
    names = (
        "class",
        "probability",
        "true",
        "method",
        "layer",
        "p",
        "drop",
        "random_drop",
        "similarity",
        "verdict",
        "picture",
        "neighbours",
    )
    return {"path": path, **dict.fromkeys(names), "error": error}


def verdict_lines(one: ExplainedMap) -> str:
    """Two short lines for below a picture."""
    hiding, verdict = one.verdict.hiding, one.verdict
    figures = "marks nothing" if hiding is None else f"p {hiding.p:.2g}, alike {verdict.similarity:.2f}"
    return f"{'supported' if verdict.supported else 'not supported'}\n{figures}"


def draw_explanations(images: Sequence[ExplainedImage], explainer: Explainer, *, title: str, tile: int = TILE) -> bytes:
    """A PNG: each image, its maps, and its neighbours, in a row. `images`: at least one, each with as many neighbours."""
    classes = explainer.predictor.classes
    true = {classes.index(one.true) for one in images if one.true is not None}
    shown = sorted(true | {one.explanation.label for one in images} | {near.label for one in images for near in one.neighbours})
    in_a_row = 1 + len(images[0].explanation.maps) + len(images[0].neighbours)
    line = legend_letters(in_a_row, tile)
    labels, legend, _ = class_labels(classes, shown, width=CAPTION_WIDTH, line=line)
    names = dict(zip(shown, labels, strict=True))
    pictures: list[Tensor] = []
    captions: list[str] = []
    for one in images:
        said = one.explanation
        pictures.append(enlarged(said.image))
        own = [] if one.true is None else [f"true: {shortened(names[classes.index(one.true)], CAPTION_WIDTH - 6)}"]
        captions.append("\n".join([names[said.label], percent(said.probability), *own, _file_name(one.path)]))
        for each in said.maps:
            is_whole = each.method == "gradcam"  # what gradients mark is single pixels
            pictures.append(draw_overlay(said.image, each.values, each.area if is_whole else None))
            layer = f", {shortened(explainer.layer or '', LAYER_WIDTH)}" * is_whole
            captions.append(f"{METHOD_NAMES[each.method]}{layer}\n{verdict_lines(each)}")
        for near in one.neighbours:
            pictures.append(enlarged(near.image))
            captions.append(f"{names[near.label]}\ndistance {near.distance:.3f}\n{_file_name(near.name)}")
    fonts, _ = find_fonts("".join(captions))
    text = "\n".join(filter(None, [textwrap.fill(LEGEND, line), legend]))
    return draw_contact_sheet(
        torch.stack(pictures), captions, title=title, legend=text, fonts=fonts, in_a_row=in_a_row, tile=tile
    )


def _file_name(path: str) -> str:
    name = shortened(printable(Path(path).name), CAPTION_WIDTH)
    return name if not find_fonts(name)[1] else shortened(name.encode("ascii", "backslashreplace").decode(), CAPTION_WIDTH)


def concentration_sentence(name: str, found: Mapping[str, Any]) -> str:
    """What to look at, for a class whose maps lie on a border. found: the fields of a Concentration."""
    return (
        f"{name}: {percent(found['share'])} of the maps of {found['images']:,} images lie in the {found['region']}, {percent(found['area'])} of "
        "the image. Look whether the images of this class have a mark there."
    )
