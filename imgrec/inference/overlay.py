"""Maps drawn on their images: colours where a class was seen, a line around the marked area, the verdict below."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

ENLARGED_SIDE = 192  # pixels of a picture: small images are enlarged by a whole number, so that their pixels stay visible
STRONGEST = 0.65  # how much of the image the highest value covers
LINE = (0, 255, 255)  # a colour that neither gray images nor the maps have


def draw_overlay(image: Tensor, values: Tensor, area: Tensor | None) -> Tensor:
    """uint8 [3, T, T] of an image uint8 [C, S, S], its map float [S, S] and what that marks, bool [S, S]; None: no line around it."""
    from matplotlib import colormaps

    shown = enlarged(image)
    side = shown.shape[-1]
    strength = F.interpolate(values[None, None].float(), (side, side), mode="bilinear", align_corners=False)[0, 0]
    strength = strength / strength.amax().clamp_min(torch.finfo().tiny)
    colours = torch.from_numpy(colormaps["inferno"](strength.numpy())[..., :3]).movedim(-1, 0) * 255
    cover = STRONGEST * strength.sqrt()
    gray = shown.float().mean(0).expand(3, -1, -1)  # so that all colour is the map's
    picture = (gray * (1 - cover) + colours * cover).round().clamp(0, 255).to(torch.uint8)
    if area is None:
        return picture
    lines = torch.from_numpy(_outline(np.kron(area.numpy(), np.ones((side // len(area),) * 2, dtype=bool))))
    picture[:, lines] = torch.tensor(LINE, dtype=torch.uint8)[:, None]
    return picture


def enlarged(image: Tensor) -> Tensor:
    """uint8 [3, T, T] of uint8 [C, S, S]: T is the multiple of S from ENLARGED_SIDE on."""
    factor = -(-ENLARGED_SIDE // image.shape[-1])
    large = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return large.expand(3, -1, -1).contiguous() if len(large) == 1 else large


def _outline(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of an area [T, T] that have a neighbour outside it; the border of the picture counts as inside."""
    padded = np.pad(area, 1, mode="edge")
    inner = padded[1:-1, :-2] & padded[1:-1, 2:] & padded[:-2, 1:-1] & padded[2:, 1:-1]
    return area & ~inner
