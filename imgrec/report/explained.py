"""What `imgrec explain RUN` adds to a run's report: which images it explains, what is stored of them, and the section."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from imgrec.analysis.confusions import most_certain_errors
from imgrec.analysis.map_borders import Concentration
from imgrec.config.plain_data import read_mapping
from imgrec.data.batch import Indices
from imgrec.data.image_set import read_again
from imgrec.data.picture import to_picture
from imgrec.errors import ConfigError, DataError, plural, printable, shorten
from imgrec.files import atomic_write
from imgrec.html_page import Section, text
from imgrec.inference.checkpoint import Checkpoint, weights_hash
from imgrec.inference.explanation_output import ExplainedImage, concentration_sentence
from imgrec.inference.explanations import METHOD_NAMES, Explainer
from imgrec.inference.overlay import draw_overlay
from imgrec.paths import EXPLAINED, EXPLAINED_FILE
from imgrec.report.facts import Facts
from imgrec.report.measured import without_table
from imgrec.report.shown_images import find_in_split
from imgrec.report.stored_values import SHARE, ValueKind, check_kinds
from imgrec.report.thumbnails import THUMB_SIDE, WEBP, webp_url
from imgrec.training.measured_file import measured_weights

MOST_ERRORS = 12  # that are explained; each takes as long as the prediction of 400 images
_IMAGES_OF_CLASS, _MOST_CLASSES = 20, 50  # whose maps are looked at for borders and corners
EXPLAINED_KINDS = {
    "imgrec": ValueKind(str),
    "weights": ValueKind(str),
    "layer": ValueKind(str | None),
    "looked_at": ValueKind(int),
    "concentrations": ValueKind(list[dict[str, Any]]),
    "concentrations.*.class": ValueKind(str),
    "concentrations.*.region": ValueKind(str),
    "concentrations.*.share": ValueKind(float, SHARE),
    "concentrations.*.area": ValueKind(float, SHARE),
    "concentrations.*.images": ValueKind(int),
    "images": ValueKind(list[dict[str, Any]]),
    "images.*.name": ValueKind(str),
    "images.*.true": ValueKind(str),
    "images.*.class": ValueKind(str),
    "images.*.maps": ValueKind(list[dict[str, Any]]),
    "images.*.maps.*.method": ValueKind(str),
    "images.*.maps.*.verdict": ValueKind(str),
    "images.*.maps.*.picture": ValueKind(str),
}
_STYLE = """
.maps { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 1rem }
.maps li { width: 13rem; font-size: .85rem; line-height: 1.35; break-inside: avoid } .maps figure { margin: .2rem 0 }
.maps div { display: flex; gap: .4rem } .maps img { width: 96px; height: 96px; border-radius: 3px } .maps figcaption { font-size: .75rem; width: 96px }
"""


class RunImages(NamedTuple):
    """Images of a run's test."""

    names: list[str]
    true: list[str]  # the classes of their labels
    are_errors: bool  # the worst ones; where there are none, the images that the network was least certain of
    images: Tensor  # uint8 [N, C, S, S]
    sample: Tensor  # uint8 [M, C, S, S], up to _IMAGES_OF_CLASS that were predicted as each class


def read_run_images(facts: Facts) -> RunImages:
    """ConfigError for a run without the table of a test; DataError where the images are gone."""
    table = facts.predictions
    if table is None or table.probability is None or table.true_probability is None:
        raise ConfigError(without_table(facts.folder))
    errors = most_certain_errors(table.true, table.predicted, table.probability, table.true_probability)
    rows = (errors if len(errors) else np.argsort(table.probability, kind="stable"))[:MOST_ERRORS]
    order = np.random.default_rng(0).permutation(len(table.true))
    classes = np.unique(table.predicted)[:_MOST_CLASSES].tolist()
    sampled = np.concatenate([order[table.predicted[order] == label][:_IMAGES_OF_CLASS] for label in classes])
    names = [str(name) if table.key == "path" else f"image {name}" for name in table.names.take(rows).to_pylist()]
    true = [table.classes[label] for label in table.true[rows].tolist()]
    return RunImages(names, true, len(errors) > 0, _read(facts, rows), _read(facts, sampled))


def check_weights(facts: Facts, checkpoint: Checkpoint) -> None:
    """ConfigError where the errors of a run's test are not those of this checkpoint."""
    if measured_weights(facts.result) not in (None, weights_hash(checkpoint.content)):
        raise ConfigError(
            f"images=null: {checkpoint.file} has other weights than those that the test of {facts.folder} is of, so its errors are "
            "others. Put the file back, or set images=FOLDER."
        )


def _read(facts: Facts, rows: Indices) -> Tensor:
    assert facts.predictions is not None
    images, places, found = find_in_split(facts.folder, facts.predictions, rows, facts.measured)
    if len(found) < len(rows):
        raise DataError(f"{plural(len(rows) - len(found), 'image')} {facts.measured.of} are gone. Set images=FOLDER.")
    return read_again(images, places)


def write_explained(
    folder: Path,
    explained: Sequence[ExplainedImage],
    of_run: RunImages,
    explainer: Explainer,
    concentrations: Sequence[Concentration],
) -> None:
    """What the report shows of them, as JSON in a folder."""
    classes = explainer.predictor.classes
    content = {
        "imgrec": "explain",
        "weights": weights_hash(explainer.predictor.checkpoint.content),
        "layer": explainer.layer,
        "looked_at": len(of_run.sample),
        "concentrations": [{"class": classes[one.label], **one._asdict()} for one in concentrations],
        "images": [
            {
                "name": one.path,
                "true": label,
                "class": classes[one.explanation.label],
                "maps": [
                    {
                        "method": METHOD_NAMES[each.method],
                        "verdict": each.verdict.sentence,
                        "picture": _small(draw_overlay(one.explanation.image, each.values, None)),
                    }
                    for each in one.explanation.maps
                ],
            }
            for one, label in zip(explained, of_run.true, strict=True)
        ],
    }
    atomic_write(folder / EXPLAINED_FILE, json.dumps(content, indent=1))


def _small(overlay: Tensor) -> str:
    picture = to_picture(overlay)
    picture.thumbnail((THUMB_SIDE, THUMB_SIDE))
    return webp_url(picture, lossless=False)


def explained_sections(facts: Facts) -> list[Section]:
    """The section where `imgrec explain RUN` was typed, and none before. DataError for a file that was cut or changed."""
    file = facts.folder / EXPLAINED / EXPLAINED_FILE
    if not file.is_file():
        return []
    again = f"Type imgrec explain {facts.quoted}, which writes it anew."
    found = read_mapping(file, {"weights": str, "images": list, "concentrations": list}, fix=again)
    try:
        check_kinds(found, EXPLAINED_KINDS)
        _check_pictures(found)
    except ConfigError as error:
        raise DataError(f"{file} was cut or changed: {error} {again}") from error
    if found["weights"] != measured_weights(facts.result):
        return [
            Section("maps", "Where the network looked", f"<p>{EXPLAINED}/{EXPLAINED_FILE} is of other weights. {text(again)}</p>")
        ]
    tiles = "".join(map(_tile, found["images"]))
    layer = f" Grad-CAM is of the layer {text(printable(found['layer']))}." if found["layer"] else ""
    which = "the images that the network was most certain of, and wrong"
    if facts.test is not None and facts.test["accuracy"] == 1:
        which = f"the images that the network was least certain of: every image {facts.measured.of} is right"
    html = (
        f"{_warnings(found)}<p>Where the predicted class was seen in {which}. A map is "
        "supported where hiding what it marks lowers the probability more than hiding other areas (p &lt; 0.01) and it is another with "
        f'random weights.{layer}</p><ul class="maps">{tiles}</ul>'
    )
    return [Section("maps", "Where the network looked", html, style=_STYLE)]


def _check_pictures(found: dict[str, Any]) -> None:
    """ConfigError for one that a page would ask another server for."""
    for row, image in enumerate(found["images"]):
        for number, one in enumerate(image["maps"]):
            if not one["picture"].startswith(WEBP):
                raise ConfigError(f"images.{row}.maps.{number}.picture={shorten(one['picture'])}: expected {WEBP}...")


def _warnings(found: dict[str, Any]) -> str:
    if not found["concentrations"]:
        return f"<p>The maps of no class lie mostly on the border or in a corner ({found['looked_at']:,} images looked at).</p>"
    items = "".join(f"<li>{text(concentration_sentence(one['class'], one))}</li>" for one in found["concentrations"])
    return f'<div class="box"><b class="bad">Maps on the border:</b><ul>{items}</ul></div>'


def _tile(image: dict[str, Any]) -> str:
    true, answer = (text(printable(image[name])) for name in ("true", "class"))
    said = f'<span class="good">{true}</span>' if true == answer else f"{true} &rarr; <b>{answer}</b>"
    name = text(shorten(printable(image["name"]), 48))
    figures = "".join(
        f'<figure><img alt="{text(one["method"])} of {name}: {text(one["verdict"])}" src="{text(one["picture"])}">'
        f'<figcaption>{text(one["method"])}: <span class="{"good" if one["verdict"] == "supported" else "bad"}">{text(one["verdict"].partition(":")[0])}</span>'
        "</figcaption></figure>"
        for one in image["maps"]
    )
    return f'<li>{said}<div>{figures}</div><span class="soft">{name}</span></li>'
