"""A picture of images in rows, each with a caption below it."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from imgrec.data.picture import to_picture

LEAST_IN_A_ROW, MOST_IN_A_ROW = 4, 8  # so that the title has room; so that a screen shows it
MOST_TILES = 40  # 5 rows, which a screen shows
TILE, MARGIN = 144, 6  # pixels: side of an image, around it
CAPTION_HEIGHT, TITLE_HEIGHT, LEGEND_LINE = 47, 30, 16  # pixels; a caption of three lines
CAPTION_LINE = 15  # pixels of each further line
LETTER = 6  # pixels that a letter of the legend takes at most, on average: 5.75 in long lines


def tiles_in_a_row(images: int) -> int:
    """How many of so many images stand beside each other."""
    return min(max(images, LEAST_IN_A_ROW), MOST_IN_A_ROW)


def legend_letters(in_a_row: int, tile: int = TILE) -> int:
    """How many letters of the legend a line has room for."""
    return in_a_row * (tile + MARGIN) // LETTER


def draw_contact_sheet(
    images: Tensor,
    captions: Sequence[str],
    *,
    title: str,
    legend: str,
    fonts: list[str],
    in_a_row: int | None = None,
    tile: int = TILE,
) -> bytes:
    """A PNG of uint8 [N, C, H, W] with a caption for each, in `fonts`. 0.25 s for 40 images.

    legend: ASCII, lines below them. in_a_row: images beside each other; None: by their number. tile: pixels of their side.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    dpi = 100  # as text has a size in points
    in_a_row = in_a_row or tiles_in_a_row(len(images))
    width = in_a_row * (tile + MARGIN) + MARGIN
    lines = max(len(caption.splitlines()) for caption in captions)
    row_height = tile + CAPTION_HEIGHT + CAPTION_LINE * max(0, lines - 3) + MARGIN
    bottom = TITLE_HEIGHT + -(-len(images) // in_a_row) * row_height
    height = bottom + LEGEND_LINE * len(legend.splitlines())
    sheet = Image.new("RGB", (width, height), "white")
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="none")
    figure.text(MARGIN / width, 1 - TITLE_HEIGHT / 2 / height, title, fontsize=10, va="center", parse_math=False)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, in_a_row)
        left, top = MARGIN + column * (tile + MARGIN), TITLE_HEIGHT + row * row_height
        sheet.paste(_tile(image, tile), (left, top))
        own = Bbox.from_bounds(left, 0, tile + MARGIN // 2, height)  # wide letters end there, not in the next caption
        text = figure.text(
            left / width, 1 - (top + tile + 2) / height, caption, fontsize=8, va="top", family=fonts, parse_math=False
        )
        text.set(clip_box=own, clip_on=True)
    figure.text(MARGIN / width, 1 - bottom / height, legend, fontsize=8, va="top", linespacing=1.2, parse_math=False)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    texts = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    sheet.paste(texts, mask=texts)  # matplotlib would take as long again to draw the images
    content, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("Software", "imgrec")
    sheet.save(content, "PNG", pnginfo=info)
    return content.getvalue()


def _tile(image: Tensor, side: int) -> Image.Image:
    """uint8 [C, H, W] in a square of `side` pixels; the pixels of small images stay visible."""
    picture = to_picture(image).convert("RGB")
    method = Image.Resampling.NEAREST if max(picture.size) < side else Image.Resampling.LANCZOS
    return ImageOps.pad(picture, (side, side), method, color="white")
