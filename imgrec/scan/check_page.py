"""What a check found as one HTML page with the images in it: it opens without a network, light or dark."""

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from itertools import starmap
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from imgrec.analysis.image_faults import FaultKind
from imgrec.data.folder import ImageFiles
from imgrec.data.picture import to_picture
from imgrec.errors import DataError, plural
from imgrec.html_page import Section, render, text

THUMBNAIL_SIDE = 160  # pixels: about 5 KB of JPEG, of which a page has 200 at most
_LEAST_SIDE = 96  # pixels: smaller pictures are enlarged by a whole factor
_STYLE = """
.examples { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0 }
.examples li { width: 20.8rem; background: var(--box); border-radius: 6px; padding: .6rem; font-size: .85rem; break-inside: avoid }
.examples li.one { width: 13rem } .examples li.pair img { max-width: 48% }
.examples img { height: 7.5rem; max-width: 100%; object-fit: contain; border-radius: 3px; margin-right: .3rem }
"""


class Example(NamedTuple):
    """A line about an image or a class, and the JPEG files to show with it, None for an image that cannot be decoded."""

    text: str
    pictures: list[bytes | None]


def thumbnail(images: ImageFiles, row: int) -> bytes | None:
    """A small JPEG of an image file, upright; None where it cannot be read."""
    try:
        pixels = images.decode(row)
    except DataError:
        return None
    return small_jpeg(pixels)


def small_jpeg(pixels: Tensor) -> bytes:
    """A JPEG of THUMBNAIL_SIDE pixels at most, of uint8 [C, H, W]."""
    image = to_picture(pixels)
    if (factor := _LEAST_SIDE // max(image.size)) > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    out = BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def check_page(
    title: str, summary: str, sections: Sequence[tuple[FaultKind, int, list[Example]]], *, labels_alone: bool = False
) -> str:
    """The page; sections: a kind, how many there are of it, and examples. labels_alone: files were not looked at."""
    faults = sum(count for kind, count, _ in sections if kind.is_fault)
    verdict = "" if labels_alone else f"<p><b>{plural(faults, 'fault') if faults else 'No faults'}.</b></p>"
    rows = "".join(
        f'<tr><th scope="row">{_title(kind)}</th><td class="n">{count:,}</td><td>{_label(kind)}</td></tr>'
        for kind, count, _ in sections
    )
    found = f"<p>{text(summary)}</p>{verdict}{f'<table><tbody>{rows}</tbody></table>' if rows else ''}"
    return render("check", title, [Section("found", "What was found", found, style=_STYLE), *starmap(_section, sections)])


def _title(kind: FaultKind) -> str:
    return kind.name.replace("_", " ")


def _label(kind: FaultKind) -> str:
    return '<b class="bad">fault</b>' if kind.is_fault else '<b class="soft">hint</b>'


def _section(kind: FaultKind, count: int, examples: list[Example]) -> Section:
    left = count - len(examples)
    more = f"<p>and {left:,} more: all names are in the JSON file.</p>" if left > 0 else ""
    said = f"<p>{_label(kind)}: {text(kind.what)}. {text(kind.advice)}</p>"
    return Section(
        kind.name, f"{_title(kind)}: {count:,}", f'{said}<ul class="examples">{"".join(map(_item, examples))}</ul>{more}'
    )


def _item(example: Example) -> str:
    shown = [jpeg for jpeg in example.pictures if jpeg is not None]
    pictures = "".join(f'<img alt="" src="data:image/jpeg;base64,{b64encode(jpeg).decode()}">' for jpeg in shown)
    kind = "pair" if len(shown) > 1 else "one"
    return f'<li class="{kind}">{pictures}<div>{text(example.text)}</div></li>'
