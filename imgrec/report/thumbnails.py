"""Small pictures that are embedded in a page, each once, however often it is shown."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor

from imgrec.data.batch import Indices, Request
from imgrec.data.image_set import ImageSet
from imgrec.data.picture import to_picture
from imgrec.errors import DataError
from imgrec.html_page import text

THUMB_SIDE = 96  # pixels: 1 to 3 KB of WebP at this quality
WEBP = "data:image/webp;base64,"  # how the URL of a picture begins
_QUALITY = 70
_AT_ONCE = 64  # images that are read together
# As a background a picture is in the page once, and needs no script; on paper it has to be asked for.
_STYLE = """
.thumbs { list-style: none; padding: 0; margin: .6rem 0; display: flex; flex-wrap: wrap; gap: .8rem }
.thumbs li { width: 8.5rem; font-size: .85rem; line-height: 1.35; break-inside: avoid }
.thumbs li > span { display: block } .thumbs .soft { font-size: .75rem }
.thumb { width: 96px; height: 96px; border-radius: 3px; background: var(--box) center / contain no-repeat;
  print-color-adjust: exact; -webkit-print-color-adjust: exact }
"""
_LARGE_PIXELS = ".thumb { image-rendering: pixelated }\n"


def read_thumbnails(images: ImageSet, rows: Indices, *, budget: int) -> dict[int, str]:
    """Pictures of rows as data URLs, the first rows first, up to `budget` letters. Without images that cannot be read."""
    found: dict[int, str] = {}
    spent = 0
    for start in range(0, len(rows), _AT_ONCE):
        for row, image in _read(images, rows[start : start + _AT_ONCE]):
            found[row] = picture_url(image)
            spent += len(found[row])
            if spent > budget:
                del found[row]
                return found
    return found


def _read(images: ImageSet, rows: Indices) -> Iterator[tuple[int, Tensor]]:
    try:
        batch = images[Request(0, rows, len(rows))]
    except DataError:
        if len(rows) > 1:  # which one it is
            for row in rows:
                yield from _read(images, np.array([row]))
    else:
        yield from zip(batch.indices.tolist(), batch.images, strict=True)


def picture_url(image: Tensor) -> str:
    """A data URL of uint8 [C, H, W], reduced to THUMB_SIDE pixels; small images exactly, which takes fewer bytes."""
    picture = to_picture(image).convert("RGB")
    small = max(picture.size) <= THUMB_SIDE // 2
    picture.thumbnail((THUMB_SIDE, THUMB_SIDE))
    return webp_url(picture, lossless=small)


def webp_url(picture: Image.Image, *, lossless: bool) -> str:
    """A data URL of a picture as WebP."""
    out = BytesIO()
    picture.save(out, "WEBP", lossless=lossless, quality=_QUALITY)
    return f"{WEBP}{b64encode(out.getvalue()).decode()}"


def thumbnail_rules(pictures: Mapping[int, str], *, enlarged: bool) -> str:
    """CSS that shows the picture of a row in each element of `picture_html`."""
    rules = "\n".join(f".t{row}{{background-image:url({url})}}" for row, url in pictures.items())
    return f"{_STYLE}{_LARGE_PIXELS if enlarged else ''}{rules}\n"


def picture_html(row: int, name: str) -> str:
    """HTML that shows the picture of a row; name: what is read aloud."""
    return f'<span class="thumb t{row}" role="img" aria-label="{text(name)}"></span>'
