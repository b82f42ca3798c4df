"""Texts in pictures: in fonts of this machine that have their letters; a class whose name none can draw has its number."""

import logging
import os
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size

from imgrec.errors import printable

FIRST_FONT = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic
FALLBACK_FONTS = ("Last Resort", "LastResort")  # begin the names of fonts that have a box for every letter


class ClassLabels(NamedTuple):
    """What a picture shows for class names."""

    labels: list[str]  # in their order: the name, or as #0, #1, ... the number of the class where no font has its letters
    legend: str  # lines with the names of these numbers, in ASCII
    fonts: list[str]  # matplotlib's families for all texts


def class_labels(names: Sequence[str], classes: Sequence[int] | None = None, *, width: int, line: int) -> ClassLabels:
    """Labels of these classes (None: all), up to `width` columns of a terminal wide; `line`: letters in a line of the legend."""
    classes = range(len(names)) if classes is None else classes
    shown = [shortened(printable(names[number]), width) for number in classes]
    fonts, missing = find_fonts("".join(shown))
    labels = [f"#{number}" if missing & set(name) else name for number, name in zip(classes, shown, strict=True)]
    numbered = [f"{label}={_ascii(name)}" for label, name in zip(labels, shown, strict=True) if label != name]
    legend = textwrap.fill("; ".join(numbered), line, break_on_hyphens=False)
    return ClassLabels(labels, legend, fonts)


def drawn_text(text: str) -> tuple[str, list[str]]:
    """A text and its fonts; in ASCII where none has its letters."""
    text = printable(text)
    fonts, missing = find_fonts(text)
    return _ascii(text) if missing else text, fonts


def shortened(name: str, width: int) -> str:
    """A name up to `width` columns of a terminal wide: a Chinese letter takes two."""
    return name if cell_len(name) <= width else f"{set_cell_size(name, width - 3).rstrip()}..."


def find_fonts(text: str) -> tuple[list[str], frozenset[str]]:
    """Families of fonts which together have the letters of a text, the usual one first, and the letters that none has."""
    from matplotlib.font_manager import FontPath, findfont, get_font

    def letters_in(font: FontPath) -> frozenset[str]:
        opened = get_font(font)
        return frozenset(letter for letter in missing if opened.get_char_index(ord(letter)))

    families, missing = [FIRST_FONT], frozenset(text)
    missing -= letters_in(findfont(FIRST_FONT))
    for family, file in _installed_fonts().items() if missing else ():
        if found := letters_in(file):
            families.append(family)
            missing -= found
    return families, missing


@cache
def _installed_fonts() -> dict[str, Any]:
    """The font of each family that matplotlib draws with, those of regular weight first. 0.05 s for 38 fonts."""
    from matplotlib.font_manager import FontPath, findSystemFonts, fontManager

    listed = {os.path.realpath(entry.fname) for entry in fontManager.ttflist}
    for file in findSystemFonts():  # matplotlib's list is as old as its first use on this machine
        if os.path.realpath(file) not in listed:
            with suppress(OSError, RuntimeError, NotImplementedError):  # damaged, or of bitmaps only
                fontManager.addfont(file)
    # It warns of families without a regular weight, whenever it draws.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    usual = [entry for entry in fontManager.ttflist if not entry.name.startswith(FALLBACK_FONTS)]
    usual.sort(key=lambda entry: (entry.weight not in (400, "normal"), entry.style != "normal", entry.name))
    fonts: dict[str, FontPath] = {}
    for entry in usual:
        fonts.setdefault(entry.name, FontPath(entry.fname, entry.index))
    return fonts


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()
