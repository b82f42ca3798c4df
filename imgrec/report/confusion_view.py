"""The confusion matrix of a report, which is drawn, zoomed, and asked for the images of a cell."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.confusions import cluster_order
from imgrec.errors import plural, printable
from imgrec.html_page import Section, read_script
from imgrec.report.shown_images import ShownImages

Matrix = NDArray[np.int64]
MOST_CELLS = 60_000  # drawn: 0.4 MB
_STYLE = """
.matrix { display: grid; grid-template-columns: minmax(0, 46rem) minmax(12rem, 1fr); gap: 0 1.5rem; align-items: start }
@media (max-width: 60rem) { .matrix { grid-template-columns: minmax(0, 1fr) } }
#confusion-canvas { display: block; width: 100%; aspect-ratio: 1; cursor: crosshair }
#confusion-canvas:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
#confusion-cell { min-height: 3em; margin: .4rem 0 } .tools { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .6rem 0 }
.tools button, .tools select { font: inherit; color: inherit; background: var(--box); border: 1px solid var(--line);
  border-radius: 4px; padding: .1rem .6rem; cursor: pointer }
.thumbs li.plain { width: 100% }
@media print { .tools, .hint, #confusion-cell { display: none } .matrix { display: block } #confusion-canvas { max-width: 150mm } }
"""
_TOOLS = """
<div class="tools" role="group" aria-label="Confusion matrix"><button type="button" data-zoom="in" aria-label="Zoom in">+</button>
<button type="button" data-zoom="out" aria-label="Zoom out">&minus;</button><button type="button" data-zoom="whole">whole matrix</button>
<label>order <select id="confusion-order"><option value="clustered">similar classes together</option>
<option value="listed">as in the class list</option></select></label></div>
"""
_LABEL = "Confusion matrix. Arrow keys choose a cell, plus and minus zoom, Enter shows its images. The table below has the largest confusions."


def confusion_section(matrix: Matrix, classes: Sequence[str], images: ShownImages | None) -> Section:
    """matrix: counts [K, K], a row for each true class."""
    said = (
        "A row for each true class, a column for each predicted one: blue are the right images, red the confusions, the stronger "
        "the larger their share of the true class (of red its square root, so that rare ones are seen)."
    )
    cells = int(np.count_nonzero(matrix))
    left_out = f" The {plural(cells - MOST_CELLS, 'cell')} with the fewest images are not drawn." if cells > MOST_CELLS else ""
    content = json.dumps(matrix_data(matrix, classes, images), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    html = (
        f'<p>{said}{left_out}</p><p class="soft hint">A click on a cell shows its images. With the focus on the matrix, after a '
        "click, the wheel zooms; without it, Ctrl and the wheel, the buttons or two fingers do.</p>"
        f'{_TOOLS}<div class="matrix"><div><canvas id="confusion-canvas" tabindex="0" role="application" aria-label="{_LABEL}"></canvas></div>'
        '<div><p id="confusion-cell" aria-live="polite">Point at a cell to see its classes and images.</p><div id="confusion-images" aria-live="polite"></div></div></div>'
        f'<script type="application/json" id="confusion-data">{content}</script>'
    )
    script = read_script("imgrec.report", "confusion.js")
    return Section("confusion", "Confusion matrix", html, script=script, style=_STYLE)


def matrix_data(matrix: Matrix, classes: Sequence[str], images: ShownImages | None) -> dict[str, object]:
    """What the script draws: numbers of classes, and of each image its cell, probability in thousandths, picture and name."""
    counts, least = matrix, 0
    if np.count_nonzero(matrix) > MOST_CELLS:
        least = int(np.sort(matrix[matrix > 0])[-MOST_CELLS - 1])
        counts = np.where(matrix > least, matrix, 0)
    rows = [np.stack([row.nonzero()[0], row[row > 0]], axis=1).reshape(-1).tolist() for row in counts]
    names = [printable(name) for name in classes]
    support = matrix.sum(axis=1).tolist()
    listed = [] if images is None else _cell_images(images, len(classes))
    return {
        "names": names,
        "order": cluster_order(matrix).tolist(),
        "support": support,
        "rows": rows,
        "least": least,
        "images": listed,
    }


def _cell_images(images: ShownImages, classes: int) -> list[list[int | str]]:
    table, rows = images.predictions, images.cells
    assert table.probability is not None, "else there are no shown images"
    cells = (table.true[rows] * classes + table.predicted[rows]).tolist()
    thousandths = np.round(table.probability[rows].astype(np.float64) * 1000).astype(int).tolist()
    return [
        [cell, probability, row if row in images.pictures else -1, images.names[row]]
        for cell, probability, row in zip(cells, thousandths, rows.tolist(), strict=True)
    ]
