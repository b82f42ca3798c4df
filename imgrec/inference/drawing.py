"""What all pictures of matplotlib share: the title, in fonts that have its letters, and the PNG, which names imgrec."""

import io
from typing import TYPE_CHECKING

from imgrec.inference.picture_text import drawn_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def set_title(axes: "Axes", title: str) -> None:
    """`title` above the axes; it may have a class name or a path in any script."""
    text, fonts = drawn_text(title)
    axes.set_title(text, fontsize=10, family=fonts, parse_math=False)


def png_bytes(figure: "Figure") -> bytes:
    """The picture as a PNG that `is_our_png` knows, so that a later run may replace it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": "imgrec"})
    return content.getvalue()
