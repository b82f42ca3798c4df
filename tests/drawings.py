"""What commands draw with matplotlib: one pixel in the tests, but for those that look at it.

The two pictures of an evaluation are nine tenths of it, those of TensorBoard four fifths of a run of two steps.
"""

import functools
import inspect
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# By the module that calls it.
DRAWN = {
    "imgrec.inference.split_predictions": ["draw_contact_sheet"],
    "imgrec.inference.evaluation_output": ["draw_confusion_matrix", "draw_reliability", "draw_slices"],
    "imgrec.training.callbacks.pictures": ["draw_confusion_matrix", "draw_recall_bars", "draw_reliability"],
}


def draw_pixels() -> None:
    """From here on, also in forks of this process."""
    if "torch" not in sys.modules:  # no test that was collected trains or evaluates in this process
        return
    content, info = io.BytesIO(), PngInfo()
    info.add_text("Software", "imgrec")  # so that a later run may replace it
    Image.new("RGB", (1, 1)).save(content, "PNG", pnginfo=info)
    for module in map(import_module, DRAWN):
        for name in DRAWN[module.__name__]:
            setattr(module, name, _pixel(getattr(module, name), content.getvalue()))


def _pixel(draw: Callable[..., bytes], content: bytes) -> Callable[..., bytes]:
    takes = inspect.signature(draw)

    @functools.wraps(draw)
    def pixel(*figures: Any, **texts: Any) -> bytes:
        takes.bind(*figures, **texts)
        return content

    return pixel


@contextmanager
def drawn_as_for_users() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in map(import_module, DRAWN):
            for name in DRAWN[module.__name__]:
                patch.setattr(module, name, inspect.unwrap(getattr(module, name)))
        yield
