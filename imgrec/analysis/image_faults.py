"""What is wrong with image files, from their headers and pixels, and with the classes of the splits, from their counts."""

from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgrec.config.schema import Split
from imgrec.data.batch import Indices
from imgrec.errors import printable

TINY_SIDE = 32  # pixels; but half of data.image_size where that is smaller, as for digits of 28x28
TINY_SHARE = 1 / 4  # of data.image_size: an image that is enlarged four times and more has few of the details others have
LARGE_FACTOR = 8  # of data.image_size: decoding takes 64 times as long as the network's input is worth
EXTREME_ASPECT = 5  # of the sides: the middle that is cropped shows less than a fifth of the image
# Standard deviation of the gray levels of the channel that varies most. A covered lens has 1 to 2, by noise; an object of
# 1/2,500 of the area, black on white, has 5.
BLANK_SPREAD = 2.0
GRID = 24  # rows and columns of pixels of a first look at the spread, as that of all pixels of a photograph takes 2 ms
SURE_SPREAD = 255 / GRID  # a single pixel of the grid that differs from all others makes less
IMBALANCE = 10  # of the counts of the largest and the smallest class


class FileState(IntEnum):
    """How far the decoder comes with a file."""

    WHOLE = 0
    UNREADABLE = 1  # it has no header of a picture
    DAMAGED = 2  # it has a header, but not all pixels
    TOO_LARGE = 3
    NO_SCALE = 4  # of its values is not known which are black and white
    NOT_OPENED = 5  # the system does not let it be read; another time it may


class Sign(IntFlag):
    """What the header says."""

    CMYK = 1
    SIXTEEN_BITS = 2
    PALETTE = 4
    ALPHA = 8
    ANIMATED = 16
    TURNED = 32  # by EXIF or XMP
    WRONG_EXTENSION = 64


# A file: sides in pixels as they are stored, 0 where they are not known; FileState; Signs; `spread` of its pixels.
FACTS = np.dtype([("width", "<i4"), ("height", "<i4"), ("state", "u1"), ("signs", "u1"), ("spread", "<f4")])


class FaultKind(NamedTuple):
    """A kind of fault, or of hint: what imgrec reads as it should, and a person may want to know."""

    name: str
    is_fault: bool
    what: str
    advice: str
    leave_out: bool = False  # whether a skip list has the images


COPY_AGAIN = "Copy it again from where it came, or leave it out: write=skip."
STATE_KINDS = {
    FileState.UNREADABLE: FaultKind(
        "unreadable", True, "no picture can be found in the file: it is empty, something else, or damaged from its start",
        COPY_AGAIN, True,
    ),
    FileState.DAMAGED: FaultKind("truncated", True, "the file is cut short or damaged: its header is there, its pixels are not", COPY_AGAIN, True),
    FileState.TOO_LARGE: FaultKind(
        "too_large", True, "more pixels than data.max_pixels, so imgrec refuses it", "Make it smaller, or set a higher data.max_pixels.", True
    ),
    FileState.NO_SCALE: FaultKind(
        "no_scale", True, "values of more than 8 bits, and which are black and white is not known",
        "Set data.scale=[BLACK,WHITE].",
    ),
    FileState.NOT_OPENED: FaultKind(
        "not_opened", True, "the system does not let the file be read", "Look at its permissions, at the disk, and where a link leads; then check again."
    ),
}  # fmt: skip
WRONG_EXTENSION = FaultKind(
    "wrong_extension", True, "the content is of another format than the name says",
    "Rename it: imgrec goes by the content, other tools by the name.",
)  # fmt: skip
TINY = FaultKind(
    "tiny",
    True,
    "too small to show what images of data.image_size show",
    "Look for the original, or leave it out: write=skip.",
    True,
)
ASPECT = FaultKind(
    "extreme_aspect", True, f"one side is more than {EXTREME_ASPECT} times the other: a crop shows a small part, squashing a caricature",
    "Crop it by hand, or leave it out: write=skip.", True,
)  # fmt: skip
BLANK = FaultKind("blank", True, "all pixels are nearly the same", "Look for the original, or leave it out: write=skip.", True)
LARGE = FaultKind(
    "larger_than_needed", False, f"the shorter side is {LARGE_FACTOR} times data.image_size or more",
    "Decoding it takes most of the time: imgrec pack FOLDER out=DIR makes images smaller once.",
)  # fmt: skip
SIGN_KINDS = {
    Sign.CMYK: FaultKind("cmyk", False, "colours for print", "Convert it to RGB if its colours matter: no colour profile is applied."),
    Sign.SIXTEEN_BITS: FaultKind(
        "sixteen_bits", False, "values of more than 8 bits", "The upper 8 of 16 bits are read; data.scale says what is black and white else."
    ),
    Sign.PALETTE: FaultKind("palette", False, "colours of a palette", "Look whether the colours were reduced; a mask of labels is no photograph."),
    Sign.ALPHA: FaultKind("alpha", False, "transparent parts", "Transparency is dropped, and the network sees what lies below: put it on a background."),
    Sign.ANIMATED: FaultKind("animated", False, "several pictures in one file", "The first is read: save the others as files if they are wanted."),
    Sign.TURNED: FaultKind("exif_rotated", False, "the file says that it has to be turned", "imgrec turns it; tools that do not will see it lying."),
}  # fmt: skip
MISSING_CLASS = FaultKind(
    "missing_class", True, "a class of train has no image in another split, so nothing is known of it there", "Add images, or cut the splits anew."
)  # fmt: skip
IMBALANCE_KIND = FaultKind(
    "imbalance", False, f"the largest class of train has {IMBALANCE} times the images of the smallest, or more",
    "Train with sampling=sqrt or loss.class_weights=balanced, and look at macro_f1: monitor=val/macro_f1.",
)  # fmt: skip


def tiny_side(image_size: int) -> float:
    """The shorter side, in pixels, below which an image is tiny for a network's input of this side."""
    return max(min(TINY_SIDE, image_size / 2), TINY_SHARE * image_size)


def find_image_faults(facts: NDArray[np.void], image_size: int) -> dict[FaultKind, Indices]:
    """The rows of each kind that has any, faults first; facts: FACTS [N]. An image that is not decoded has its state alone."""
    state, signs = facts["state"], facts["signs"]
    sides = np.sort(np.stack([facts["width"], facts["height"]]), axis=0)
    masks = {kind: state == number for number, kind in STATE_KINDS.items()}
    whole = state == FileState.WHOLE
    masks[WRONG_EXTENSION] = whole & (signs & Sign.WRONG_EXTENSION > 0)
    masks[TINY] = whole & (sides[0] < tiny_side(image_size))
    masks[ASPECT] = whole & (sides[1] > EXTREME_ASPECT * sides[0])
    masks[BLANK] = whole & (facts["spread"] < BLANK_SPREAD)
    masks[LARGE] = whole & (sides[0] >= LARGE_FACTOR * image_size)
    masks |= {kind: whole & (signs & sign > 0) for sign, kind in SIGN_KINDS.items()}
    return {kind: np.flatnonzero(mask) for kind, mask in masks.items() if mask.any()}


def sample(pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """uint8 [C, GRID, GRID] of uint8 [C, H, W], spread over it; None where a side is shorter."""
    height, width = pixels.shape[1:]
    return pixels[:, :: height // GRID, :: width // GRID][:, :GRID, :GRID] if min(height, width) >= GRID else None


def spread(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Standard deviation, in gray levels, of the channel that varies most; pixels: uint8 [..., C, H, W]."""
    deviations: NDArray[np.float64] = pixels.reshape(*pixels.shape[:-2], -1).std(axis=-1, dtype=np.float64)
    return np.asarray(deviations.max(axis=-1))


def find_class_faults(counts: Mapping[Split, Indices], classes: tuple[str, ...]) -> dict[FaultKind, list[str]]:
    """Sentences of each kind that there is; counts: int64 [K] of each split that has images, `train` among them."""
    train, names = counts["train"], list(map(printable, classes))
    missing = [
        f"{split} has no {names[row]}"
        for split, found in counts.items()
        for row in np.flatnonzero((found == 0) & (train > 0)).tolist()
    ]
    most, least = int(train.argmax()), int(np.where(train > 0, train, train.max()).argmin())
    uneven = train[most] >= IMBALANCE * train[least]
    sizes = [f"{names[most]} has {train[most]:,} images, {names[least]} {train[least]:,}"] if uneven else []
    return {kind: found for kind, found in ((MISSING_CLASS, missing), (IMBALANCE_KIND, sizes)) if found}
