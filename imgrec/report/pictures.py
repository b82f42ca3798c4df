"""What a report shows of images: the confusion matrix, the most confused pairs, the worst errors, the least certain, a training batch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imgrec.analysis.confusions import largest_confusions
from imgrec.data.batch import Indices
from imgrec.errors import plural, printable, shorten
from imgrec.html_page import Section, text
from imgrec.report.confusion_view import Matrix, confusion_section
from imgrec.report.facts import Facts
from imgrec.report.shown_images import PICTURED_PAIRS, ShownImages
from imgrec.report.thumbnails import picture_html, thumbnail_rules, webp_url
from imgrec.terminal import percent
from imgrec.training.run_dir import TRAIN_BATCH

_LONGEST = 48  # letters of a name below a picture
_BATCH_SIDE = 1000  # pixels
_STYLE = """
.pairs.pictured { width: 100% } .pairs td { min-width: 0 } .pairs .thumbs { margin: 0; gap: .3rem } .pairs .thumbs li { width: auto }
.pairs .thumb { width: 56px; height: 56px } .pairs button { font: inherit; color: inherit; background: var(--box);
  border: 1px solid var(--line); border-radius: 4px; padding: .1rem .6rem; margin-right: .5rem; cursor: pointer }
@media screen and (max-width: 40rem) { .pairs, .pairs thead, .pairs tbody { display: block }
  .pairs tr { display: grid; grid-template-columns: 1fr 1fr 7.5rem } .pairs td:nth-child(4) { grid-column: 1 / 4; padding-bottom: .6rem }
  .pairs th:nth-child(4) { display: none } }
@media print { .pairs button { border: 0; background: none; padding: 0 } .pairs .thumb { width: 40px; height: 40px } }
"""
_CELL = (
    '<td role="cell">'  # roles are said, as a narrow screen shows the table's rows as blocks, which browsers take for no table
)
_HEADINGS = (("true", ""), ("predicted", ""), ("images", ' class="n"'), ("the most certain", ""))


def image_sections(facts: Facts, images: ShownImages | None) -> list[Section]:
    """Of the test as far as the run has one, and of its first training batch."""
    batch = batch_section(facts.folder / TRAIN_BATCH)
    if facts.confusion is None:
        return [batch]
    of = facts.measured.of
    matrix = [
        confusion_section(facts.confusion, facts.classes, images),
        confused_pairs_section(facts.confusion, facts.classes, images, of),
    ]
    return [*matrix, batch] if images is None else [*matrix, *picture_sections(images, of), batch]


def confused_pairs_section(matrix: Matrix, classes: Sequence[str], images: ShownImages | None, of: str) -> Section:
    """The largest confusions as a table, with pictures where there are any. matrix: counts [K, K], a row for each true class; of: "of the test"."""
    pairs = largest_confusions(matrix, PICTURED_PAIRS)
    if not len(pairs):
        return Section("pairs", "Most confused pairs", f"<p>Every image {of} is right.</p>")
    support = matrix.sum(axis=1)
    pictured = images is not None and bool(images.pictures)
    rows = ""
    for place, (true, predicted, count) in enumerate(pairs.tolist()):
        names = [printable(classes[number]) for number in (true, predicted)]
        label = f"Show {plural(count, 'image')} of {names[0]} predicted as {names[1]}"
        shown = f"{_CELL}{_thumbs(images, place)}</td>" if images is not None and pictured else ""
        rows += (
            f'<tr role="row">{_CELL}{text(names[0])}</td>{_CELL}{text(names[1])}</td><td role="cell" class="n"><button type="button" '
            f'data-cell="{true},{predicted}" aria-label="{text(label)}">{count:,}</button>{count / support[true]:.1%}</td>{shown}</tr>'
        )
    head = "".join(f'<th role="columnheader" scope="col"{kind}>{name}</th>' for name, kind in _HEADINGS[: 4 if pictured else 3])
    left = int(np.count_nonzero(matrix) - np.count_nonzero(matrix.diagonal())) - len(pairs)
    more = f'<p class="soft">and {plural(left, "other pair")}, of {pairs[-1, 2]:,} or fewer</p>' if left else ""
    html = (
        '<p>The images of a pair, and their share of the true class.<span class="hint"> A number shows them beside the matrix.</span></p>'
        f'<table role="table" class="pairs{" pictured" * pictured}"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{rows}</tbody></table>{more}'
    )
    return Section("pairs", "Most confused pairs", html, style=_STYLE)


def _thumbs(images: ShownImages, place: int) -> str:
    rows = [row for row in images.pair_rows[place].tolist() if row in images.pictures]
    return (
        f'<ul class="thumbs">{"".join(f"<li>{picture_html(row, images.names[row])}</li>" for row in rows)}</ul>' if rows else ""
    )


def picture_sections(images: ShownImages, of: str) -> list[Section]:
    """The worst errors and the least certain images. The pictures of all sections are in the style of the first."""
    missing = f"<p>{text(images.missing)}</p>" if images.missing else ""
    worst = f"<p>Every image {of} is right.</p>"
    if len(images.worst):
        worst = (
            "<p>The errors that the network was most certain of: true &rarr; predicted class, and its probability. "
            f"A wrong label may be among them.</p>{missing}{_tiles(images, images.worst)}"
        )
    said = "<p>The images with the lowest probability of the predicted class. Those with one name are right.</p>"
    unsure = said + _tiles(images, images.unsure)
    style = thumbnail_rules(images.pictures, enlarged=images.enlarged)
    return [Section("worst-errors", "Worst errors", worst, style=style), Section("least-certain", "Least certain images", unsure)]


def _tiles(images: ShownImages, rows: Indices) -> str:
    return f'<ul class="thumbs">{"".join(_tile(images, row, _answer(images, row)) for row in rows.tolist())}</ul>'


def changed_tiles(images: ShownImages) -> str:
    """The images of a run that added classes whose answer changed: that before, that now, and where neither is right the true class."""
    table, tiles = images.predictions, ""
    for row, before in images.changed.items():
        true, now = table.classes[table.true[row]], table.classes[table.predicted[row]]
        names = (f'<span class="good">{_short(name)}</span>' if name == true else _short(name) for name in (before, now))
        wrong = "" if true in (before, now) else f'<span class="soft">true: {_short(true)}</span>'
        tiles += _tile(images, row, f"<span>{' &rarr; '.join(names)}</span>{wrong}")
    return f'<ul class="thumbs">{tiles}</ul>'


def _answer(images: ShownImages, row: int) -> str:
    table = images.predictions
    true, predicted = (table.classes[number] for number in (table.true[row], table.predicted[row]))
    if table.true[row] == table.predicted[row]:
        return f'<span class="good">{_short(true)}</span>'
    return f"<span>{_short(true)} &rarr; <b>{_short(predicted)}</b></span>"


def _tile(images: ShownImages, row: int, said: str) -> str:
    table = images.predictions
    assert table.probability is not None, "else there are no shown images"
    picture = picture_html(row, images.names[row]) if row in images.pictures else ""
    return (
        f"<li>{picture}{said}<span>{percent(float(table.probability[row]))}</span>"
        f'<span class="soft">{_short(images.names[row])}</span></li>'
    )


def _short(name: str) -> str:
    shown = printable(name)
    return text(shown) if len(shown) <= _LONGEST else f'<span title="{text(shown)}">{text(shorten(shown, _LONGEST))}</span>'


def batch_section(picture: Path) -> Section:
    """The first training batch, as the network saw it; `picture` is the file that the training wrote."""
    if not picture.is_file():
        html = "<p>The run has no picture of a training batch: it is drawn with callbacks.pictures.images above 0.</p>"
    else:
        with Image.open(picture) as opened:
            batch = opened.convert("RGB")
        batch.thumbnail((_BATCH_SIDE, _BATCH_SIDE))
        html = (
            "<p>Images of the first training batch after resizing and augmentation, each from its darkest to its brightest value.</p>"
            f'<img alt="Images of the first training batch, augmented" width="{batch.width}" height="{batch.height}" '
            f'src="{webp_url(batch, lossless=False)}">'
        )
    return Section("seen", "What the network saw", html)
