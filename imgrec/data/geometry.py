"""Geometric augmentation: one homography and one displacement field per image, then one resampling.

Conventions are torchvision's (v2.functional.affine, perspective, elastic): clockwise angles in degrees, y downwards,
positions in pixels from the centre of the image. A map is a float [B, 3, 3] from homogeneous output positions (x, y, 1)
to input positions, so the inverse of the change of the image.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from imgrec.config.named_values import Fill

FAR = 1e6  # a position outside any image, in grid units
LARGE_IMAGE = 2**14  # values, from which an operation for each image takes less time than indexing


@lru_cache(maxsize=64)
def constant_tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A float32 tensor, copied to its device once: a copy in every step would make the host wait for the GPU."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def compose_maps(first: Tensor, second: Tensor) -> Tensor:
    """The map of an image that is changed by `first`, then by `second`: positions are mapped by the second first."""
    # Not a matrix product: TF32 or autocast would round it to three digits, a tenth of a pixel of 224.
    return (first[:, :, :, None] * second[:, None]).sum(2)


def _rows(*rows: tuple[Tensor | float, ...]) -> Tensor:
    """[B, 3, 3] from its entries, each [B] or a number."""
    like = next(entry for row in rows for entry in row if isinstance(entry, Tensor))
    entries = [entry if isinstance(entry, Tensor) else like.new_full(like.shape, entry) for row in rows for entry in row]
    return torch.stack(entries, -1).view(-1, 3, 3)


def flip_and_crop_map(flip: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """The map of `flip_and_crop`."""
    return _rows((1.0 - 2.0 * flip, 0.0, dx), (0.0, 1.0, dy), (0.0, 0.0, 1.0))


def flip_and_crop(images: Tensor, flip: Tensor, dx: Tensor, dy: Tensor, *, fill: Fill) -> Tensor:
    """Crop images [B, C, H, W] of any type at (dx, dy) pixels (int64 [B]), then mirror left to right where `flip` (bool [B])."""
    if images.device.type != "cpu":
        return _gather(images, flip, dx, dy, fill)
    if bool((dx != 0).any() | (dy != 0).any()):
        images = _crop(images, dx.numpy(), dy.numpy(), fill)
    return _flip(images, flip)


def _gather(images: Tensor, flip: Tensor, dx: Tensor, dy: Tensor, fill: Fill) -> Tensor:
    """`flip_and_crop` as one indexing operation: nothing waits for the device."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device)
    x = torch.where(flip[:, None], width - 1 - x, x) + dx[:, None]
    y = torch.arange(height, device=images.device) + dy[:, None]
    rows = torch.arange(len(images), device=images.device)
    moved = images[rows[:, None, None], :, y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None]].permute(0, 3, 1, 2)
    if fill == "nearest":
        return moved
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    return moved * inside[:, None]


def _crop(images: Tensor, dx: NDArray[np.int64], dy: NDArray[np.int64], fill: Fill) -> Tensor:
    """Each image is copied row by row out of the padded one: 1 us for 32x32, where an index for each pixel takes 10 us."""
    count, channels, height, width = images.shape
    reach = int(max(abs(dx).max(), abs(dy).max()))
    padded = _pad(images, reach, fill)
    image, channel, row, pixel = padded.stride()
    # The rows of [C, H, W], or, if the channels come last, of [1, H, W * C].
    planes, values = (1, width * channels) if pixel == channels else (channels, width)
    offsets = 2 * reach + 1
    windows = padded.as_strided((count, offsets, offsets, planes, height, values), (image, row, pixel, channel, row, 1)).numpy()
    cropped = torch.from_numpy(windows[np.arange(count), dy + reach, dx + reach])
    if planes == channels:
        return cropped
    return cropped.view(count, height, width, channels).permute(0, 3, 1, 2)


def _pad(images: Tensor, reach: int, fill: Fill) -> Tensor:
    """Padded by `reach` pixels on all sides, in the memory format of `images`."""
    height, width = images.shape[-2:]
    padded = F.pad(images, [reach] * 4)
    if fill == "nearest":
        padded[:, :, :reach, reach : reach + width] = images[:, :, :1]
        padded[:, :, reach + height :, reach : reach + width] = images[:, :, -1:]
        padded[..., :reach] = padded[..., reach : reach + 1]
        padded[..., reach + width :] = padded[..., reach + width - 1 : reach + width]
    return padded


def _flip(images: Tensor, flip: Tensor) -> Tensor:
    flipped = images.clone()
    rows = flip.nonzero().flatten()
    if images[:1].numel() > LARGE_IMAGE:
        for row in rows.tolist():
            flipped[row] = images[row].flip(-1)
    else:
        flipped[rows] = images[rows].flip(-1)
    return flipped


def affine(angle: Tensor, dx: Tensor, dy: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """The map of v2.functional.affine(angle, (dx, dy), scale, (shear, 0)): degrees and pixels, all [B]."""
    angle, tan = torch.deg2rad(angle), torch.deg2rad(shear).tan()
    cos, sin = angle.cos(), angle.sin()
    # The inverse of R(angle) S(scale) Shear, followed by the shift. Rotation and shear keep areas.
    a, b = (cos - sin * tan) / scale, (sin + cos * tan) / scale
    c, d = -sin / scale, cos / scale
    return _rows((a, b, -a * dx - b * dy), (c, d, -c * dx - d * dy), (0.0, 0.0, 1.0))


def perspective(corners: Tensor, height: int, width: int) -> Tensor:
    """The map of v2.functional.perspective from the image's corners to `corners`, float [B, 4, 2] pixels (x, y) from
    the top left; order: top left, top right, bottom right, bottom left."""
    centre = constant_tensor((0.5 * width, 0.5 * height), corners.device)
    right, bottom = width - 1.0, height - 1.0
    target = (constant_tensor((0.0, 0.0, right, 0.0, right, bottom, 0.0, bottom), corners.device).view(4, 2) - centre) / centre
    x, y = ((corners - centre) / centre).unbind(-1)
    u, v = target.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    # Eight equations for h, in units of half a side: u = (h0 x + h1 y + h2) / (h6 x + h7 y + 1), and v with h3 to h5.
    top = torch.stack((x, y, one, zero, zero, zero, -u * x, -u * y), -1)
    low = torch.stack((zero, zero, zero, x, y, one, -v * x, -v * y), -1)
    # solve_ex, unlike solve, does not wait for a GPU to tell whether it went well.
    h = torch.linalg.solve_ex(torch.cat((top, low), 1), torch.cat((u, v)).expand(len(corners), 8)).result
    unit = torch.cat((h, one[:, :1]), 1).view(-1, 3, 3)
    side = torch.cat((centre, centre.new_ones(1)))
    return side[:, None] * unit / side


@lru_cache(maxsize=16)
def _blur_matrix(size: int, sigma: float, device: torch.device) -> Tensor:
    """Gaussian blur along a side as a [size, size] matrix: v2.ElasticTransform's kernel (8 sigma + 1 taps), reflected."""
    reach = (int(8 * sigma + 1) | 1) // 2
    offsets = torch.arange(-reach, reach + 1, device=device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    # The period of a reflection that does not repeat the edge; images may be smaller than the kernel.
    period = max(2 * (size - 1), 1)
    source = (torch.arange(size, device=device)[:, None] + offsets) % period
    source = torch.minimum(source, period - source)
    return torch.zeros(size, size, device=device).scatter_add_(1, source, kernel.expand(size, -1))


def displacement(noise: Tensor, alpha: float, sigma: float) -> Tensor:
    """Elastic field of v2.ElasticTransform (Simard 2003) from uniform noise in [0, 1), float [B, 2, H, W] (x, then y).

    In grid units, where a side is 2. alpha: twice the factor in pixels on the smoothed noise. sigma: pixels, of the blur.
    """
    height, width = noise.shape[-2:]
    field = noise - 0.5  # half of the usual [-1, 1)
    if sigma > 0:
        field = _blur_matrix(height, sigma, noise.device) @ field @ _blur_matrix(width, sigma, noise.device).T
    return field * constant_tensor((2 * alpha / width, 2 * alpha / height), field.device)[:, None, None]


def resample(images: Tensor, maps: Tensor, field: Tensor | None, *, fill: Fill) -> Tensor:
    """Sample float images [B, C, H, W] at the positions of `maps` ([B, 3, 3], or [B, 2, 3] if affine) plus `field`.

    field: [B, 2, H, W] in grid units. fill: pixels outside the image: its nearest edge pixel, or zero.
    """
    grid = _positions(maps, *images.shape[-2:])
    if field is not None:
        grid = grid + field
    padding = "border" if fill == "nearest" else "zeros"
    return F.grid_sample(images, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode=padding, align_corners=False)


@lru_cache(maxsize=16)
def _axis(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device, dtype=torch.float32) - 0.5 * (size - 1)


def _positions(maps: Tensor, height: int, width: int) -> Tensor:
    """Input positions of all output pixels in grid units, [B, 2, H, W]."""
    maps = maps * constant_tensor((2 / width, 2 / height, 1.0), maps.device)[: maps.shape[1], None]
    # The sum of a part that varies along x and one that varies along y: one broadcast addition per value, no product.
    along_x = maps[:, :, :1] * _axis(width, maps.device) + maps[:, :, 2:]
    along_y = maps[:, :, 1:2] * _axis(height, maps.device)
    sums = along_y[..., None] + along_x[..., None, :]
    if maps.shape[1] == 2:
        return sums
    # A pixel on the horizon divides by zero. grid_sample makes NaN of an infinite position, and fill of one far outside.
    return (sums[:, :2] / sums[:, 2:]).nan_to_num_(nan=FAR, posinf=FAR, neginf=-FAR)
