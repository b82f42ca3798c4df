"""What a check found as one HTML page with the images in it: it opens without a network, light or dark."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from imgrec.analysis.image_faults import FaultKind
from imgrec.data.folder import ImageFiles
from imgrec.data.picture import to_picture
from imgrec.errors import DataError, plural

THUMBNAIL_SIDE = 160  # pixels: about 5 KB of JPEG, of which a page has 200 at most
_LEAST_SIDE = 96  # pixels: smaller pictures are enlarged by a whole factor
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #5b5b62; --paper: #fff; --box: #f3f3f5; --fault: #b3261e; --hint: #7a5b00 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --soft: #a9a9b2; --paper: #17171a; --box: #26262b; --fault: #ff8a80; --hint: #e8c35a } }
body { margin: 2rem auto; max-width: 68rem; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
h2 { margin: 2.2rem 0 0; font-size: 1.15rem } .fault h2 { color: var(--fault) } .hint h2 { color: var(--hint) }
p { margin: .2rem 0; color: var(--soft) } a { color: inherit } table { border-collapse: collapse; margin: 1rem 0 }
td { padding: .1rem 1.2rem .1rem 0 } td.n { text-align: right; font-variant-numeric: tabular-nums }
ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0 }
li { width: 20.8rem; background: var(--box); border-radius: 6px; padding: .6rem; overflow-wrap: anywhere; font-size: .85rem }
li img { height: 7.5rem; max-width: 100%; object-fit: contain; border-radius: 3px; margin-right: .3rem }
li.one { width: 13rem } li.pair img { max-width: 48% }
@media print { li { break-inside: avoid } }
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
        f'<tr><td class="n">{count:,}</td><td><a href="#{kind.name}">{_title(kind)}</a></td><td>{"fault" if kind.is_fault else "hint"}</td></tr>'
        for kind, count, _ in sections
    )
    return (
        f'<!doctype html><!-- imgrec check --><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1><p>{escape(summary)}</p>"
        f"{verdict}{f'<table>{rows}</table>' if rows else ''}"
        f"{''.join(_section(*section) for section in sections)}</main></body></html>\n"
    )


def _title(kind: FaultKind) -> str:
    return escape(kind.name.replace("_", " "))


def _section(kind: FaultKind, count: int, examples: list[Example]) -> str:
    left = count - len(examples)
    more = f"<p>and {left:,} more: all names are in the JSON file.</p>" if left > 0 else ""
    return (
        f'<section class="{"fault" if kind.is_fault else "hint"}" id="{kind.name}"><h2>{_title(kind)}: {count:,}</h2>'
        f"<p>{escape(kind.what[0].upper() + kind.what[1:])}. {escape(kind.advice)}</p><ul>{''.join(map(_item, examples))}</ul>{more}</section>"
    )


def _item(example: Example) -> str:
    shown = [jpeg for jpeg in example.pictures if jpeg is not None]
    pictures = "".join(f'<img alt="" src="data:image/jpeg;base64,{b64encode(jpeg).decode()}">' for jpeg in shown)
    kind = "pair" if len(shown) > 1 else "one"
    return f'<li class="{kind}">{pictures}<div>{escape(example.text)}</div></li>'
