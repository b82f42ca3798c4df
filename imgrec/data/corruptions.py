"""The corruptions of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261) for images of any size, drawn for each image.

The strengths are the authors': those of ImageNet-C, and for images of up to SMALL_SIDE pixels those of their CIFAR-10-C.
Lengths in pixels are scaled from the 224 and 32 pixels that they were chosen for, but not below those for 32. Two corruptions are made otherwise, as
the originals are not available for any size or from a seed: frost has a drawn texture instead of photographs of frost, and
the glass of glass_blur displaces each pixel once instead of swapping pixels one after the other. No library is used:
imagecorruptions takes no images below 32 pixels and draws from the global state of numpy.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn, idctn, irfft2, next_fast_len, rfft2
from scipy.ndimage import map_coordinates

from imgrec.data.corruption_names import CORRUPTIONS

SEVERITIES = (1, 2, 3, 4, 5)
SMALL_SIDE = 64  # pixels of the shorter side
_Floats = NDArray[np.floating[Any]]  # [H, W, C], from 0 to 1

# By severity, for images of 224 pixels and of 32.
STRENGTHS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "gaussian_noise": ((0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),  # standard deviation
    "shot_noise": ((60, 25, 12, 5, 3), (500, 250, 100, 75, 50)),  # photons of a white pixel
    "impulse_noise": ((0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07)),  # share of the values
    "defocus_blur": (
        (3, 4, 6, 8, 10),
        (0.5, 0.65, 0.8, 1.05, 1.5),
    ),  # radius of the disc; the authors' smoothing is in the small ones
    # Standard deviation of the blur, and how far a pixel goes: that of the authors' swaps times the root of their rounds.
    "glass_blur": (
        ((0.7, 1.4), (0.9, 2.0), (1.0, 3.5), (1.1, 4.2), (1.5, 5.7)),
        ((0.05, 0.6), (0.25, 0.8), (0.4, 1.0), (0.4, 1.2), (0.4, 1.4)),
    ),
    "motion_blur": (
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),  # radius, decay
    "zoom_blur": ((1.10, 1.15, 1.20, 1.25, 1.30), (1.05, 1.10, 1.15, 1.20, 1.25)),  # the largest zoom
    # Mean and deviation of the flakes' noise, their size, the threshold, radius and decay of their motion, what is left of the image.
    "snow": (
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    # Weights of the image and of the frost.
    "frost": (
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    # How much fog, and how fast its details become weaker.
    "fog": (((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": ((0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),  # added to the value of HSV
    "contrast": ((0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),  # what is left of it
    # Of the side: strength and smoothness of the displacement, and how far corners of the image move.
    "elastic_transform": (
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
        ((0, 0.2, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": ((0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),  # pixels that are left on a side
    "jpeg_compression": ((25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),  # quality
}


def corrupt(image: NDArray[np.uint8], name: str, severity: int, *, index: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 [C, H, W], 1 gray or 3 RGB -> the same with a corruption of severity 1 to 5: a function of the arguments alone.

    index: of the image in its set. All severities of an image draw the same random numbers.
    """
    generator = np.random.default_rng([seed, CORRUPTIONS.index(name), index])
    pixels = image.transpose(1, 2, 0).astype(np.float32) / 255
    is_small = min(pixels.shape[:2]) <= SMALL_SIDE
    strength = STRENGTHS[name][is_small][severity - 1]
    scale = max(1.0, min(pixels.shape[:2]) / 32) if is_small else min(pixels.shape[:2]) / 224
    result = _FUNCTIONS[name](pixels, strength, scale, generator)
    return np.ascontiguousarray((result.clip(0, 1) * 255).round().astype(np.uint8).transpose(2, 0, 1))


def _gaussian_noise(x: _Floats, deviation: float, scale: float, generator: np.random.Generator) -> _Floats:
    return x + deviation * generator.standard_normal(x.shape, dtype=np.float32)


def _shot_noise(x: _Floats, photons: float, scale: float, generator: np.random.Generator) -> _Floats:
    return (generator.poisson(x * photons) / photons).astype(np.float32)


def _impulse_noise(x: _Floats, share: float, scale: float, generator: np.random.Generator) -> _Floats:
    drawn = generator.random(x.shape, dtype=np.float32)
    return np.where(drawn < share / 2, 0, np.where(drawn >= 1 - share / 2, 1, x)).astype(np.float32)


def _defocus_blur(x: _Floats, radius: float, scale: float, generator: np.random.Generator) -> _Floats:
    radius = radius * scale
    side = int(np.ceil(radius))
    fine = (np.arange((2 * side + 1) * 8) + 0.5) / 8 - side - 0.5  # eight points a pixel: the disc covers edges in part
    disc = (fine[:, None] ** 2 + fine**2 <= radius**2).reshape(2 * side + 1, 8, 2 * side + 1, 8).mean(axis=(1, 3))
    return _convolve(x, disc)


def _glass_blur(x: _Floats, strength: tuple[float, float], scale: float, generator: np.random.Generator) -> _Floats:
    deviation, far = (value * scale for value in strength)
    offsets = generator.uniform(-far, far, (2, *x.shape[:2]))
    return _gaussian(_displace(_gaussian(x, deviation), offsets), deviation)


def _motion_blur(x: _Floats, strength: tuple[float, float], scale: float, generator: np.random.Generator) -> _Floats:
    return _smear(x, *strength, scale, generator.uniform(-45, 45))


def _zoom_blur(x: _Floats, most: float, scale: float, generator: np.random.Generator) -> _Floats:
    height, width = x.shape[:2]
    total, zooms = 2 * x, np.linspace(1, most, 11)
    for zoom in zooms[1:]:
        left, top = (width - width / zoom) / 2, (height - height / zoom) / 2
        total = total + _resized(x, height, width, Image.Resampling.BILINEAR, box=(left, top, width - left, height - top))
    return total / (len(zooms) + 1)


def _snow(x: _Floats, strength: tuple[float, ...], scale: float, generator: np.random.Generator) -> _Floats:
    mean, deviation, size, threshold, radius, decay, left = strength
    height, width = x.shape[:2]
    size = max(1.0, size * scale)
    noise = generator.standard_normal((height, width), dtype=np.float32)
    noise = noise[: int(np.ceil(height / size)), : int(np.ceil(width / size)), None] * deviation + mean
    flakes = _resized(noise, height, width, Image.Resampling.BILINEAR)
    flakes = _smear(np.where(flakes < threshold, 0, flakes).clip(0, 1), radius, decay, scale, generator.uniform(-135, -45))
    gray = x.mean(axis=2, keepdims=True) if x.shape[2] == 1 else x @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
    return np.asarray(left * x + (1 - left) * np.maximum(x, gray * 1.5 + 0.5) + flakes + flakes[::-1, ::-1])


def _frost(x: _Floats, strength: tuple[float, float], scale: float, generator: np.random.Generator) -> _Floats:
    of_image, of_frost = strength
    ridges = 1 - np.abs(2 * _plasma(x.shape[:2], 1.8, generator) - 1)
    layer = 0.4 + 0.45 * ridges**3  # mean 0.58, deviation 0.13; the six photographs of the authors have 0.59 and 0.11
    return of_image * x + of_frost * layer


def _fog(x: _Floats, strength: tuple[float, float], scale: float, generator: np.random.Generator) -> _Floats:
    amount, decay = strength
    largest = x.max()
    return np.asarray((x + amount * _plasma(x.shape[:2], decay, generator)) * largest / (largest + amount))


def _brightness(x: _Floats, more: float, scale: float, generator: np.random.Generator) -> _Floats:
    value = x.max(axis=2, keepdims=True)  # V of HSV, with which R, G and B grow alike
    return np.where(value > 0, x * np.minimum(1, value + more) / np.where(value > 0, value, 1), more).astype(np.float32)


def _contrast(x: _Floats, left: float, scale: float, generator: np.random.Generator) -> _Floats:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray((x - mean) * left + mean)


def _elastic_transform(x: _Floats, strength: tuple[float, ...], scale: float, generator: np.random.Generator) -> _Floats:
    side = min(x.shape[:2])
    alpha, deviation, corners = (value * side for value in strength)
    centre, third = (np.array(x.shape[:2]) / 2)[:, None], side / 3
    points = centre + third * np.array([[1.0, 1, -1], [1, -1, -1]])  # three corners of a square in the middle
    moved = points + corners * generator.uniform(-1, 1, points.shape)
    noise = generator.uniform(-1, 1, (*x.shape[:2], 2))
    ones = np.ones((1, 3))
    affine = points @ np.linalg.inv(np.concatenate([moved, ones]))  # [2, 3]: where a pixel of the result comes from
    grid = np.stack([*np.indices(x.shape[:2]), np.ones(x.shape[:2])])
    offsets = np.tensordot(affine, grid, axes=1) - grid[:2]
    return _displace(x, offsets + alpha * _gaussian(noise, deviation).transpose(2, 0, 1))


def _pixelate(x: _Floats, left: float, scale: float, generator: np.random.Generator) -> _Floats:
    height, width = x.shape[:2]
    small = _resized(x, max(1, int(height * left)), max(1, int(width * left)), Image.Resampling.BOX)
    return _resized(small, height, width, Image.Resampling.NEAREST)


def _jpeg_compression(x: _Floats, quality: int, scale: float, generator: np.random.Generator) -> _Floats:
    pixels, file = (x * 255).round().astype(np.uint8), io.BytesIO()
    Image.fromarray(pixels[..., 0] if x.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return (np.asarray(image, dtype=np.float32) / 255).reshape(x.shape)


_FUNCTIONS: dict[str, Callable[[_Floats, Any, float, np.random.Generator], _Floats]] = {
    name: globals()[f"_{name}"] for name in CORRUPTIONS
}


def _gaussian(x: NDArray[Any], deviation: float) -> _Floats:
    """[H, W, C], blurred, mirrored at its edges: in the frequencies of the cosine transform, so that no width takes long."""
    damped = [np.exp(-0.5 * (deviation * np.pi * np.arange(side) / side) ** 2) for side in x.shape[:2]]
    return np.asarray(idctn(dctn(x, axes=(0, 1)) * (damped[0][:, None] * damped[1])[..., None], axes=(0, 1)).astype(np.float32))


def _convolve(x: _Floats, kernel: NDArray[Any]) -> _Floats:
    """[H, W, C] with a kernel of odd sides, of which the sum becomes 1; edges go on outside."""
    rows, columns = (side // 2 for side in kernel.shape)
    padded = np.pad(x, ((rows, rows), (columns, columns), (0, 0)), mode="edge")
    shape = [next_fast_len(side, real=True) for side in padded.shape[:2]]  # what wraps around falls on the padding
    product = rfft2(padded, shape, axes=(0, 1)) * rfft2(kernel / kernel.sum(), shape)[..., None]
    return np.asarray(
        irfft2(product, shape, axes=(0, 1))[2 * rows : 2 * rows + x.shape[0], 2 * columns : 2 * columns + x.shape[1]]
    )


def _smear(x: _Floats, radius: float, decay: float, scale: float, angle: float) -> _Floats:
    """Half a Gaussian of 2 * radius pixels in one direction, degrees, at the scale of the image."""
    length = 2 * radius * scale
    side = int(np.ceil(length))
    steps = np.linspace(0, length, 4 * side + 1)
    weights = np.exp(-0.5 * (steps / (decay * scale)) ** 2)
    kernel = np.zeros((2 * side + 3, 2 * side + 3))
    along = [side + 1 + steps * turn(np.deg2rad(angle)) for turn in (np.sin, np.cos)]
    low = [np.floor(each).astype(int) for each in along]
    for down in (0, 1):  # each point is shared by the four pixels around it
        for right in (0, 1):
            shares = [1 - np.abs(each - (first + more)) for each, first, more in zip(along, low, (down, right), strict=True)]
            np.add.at(kernel, (low[0] + down, low[1] + right), weights * shares[0] * shares[1])
    return _convolve(x, kernel)


def _displace(x: _Floats, offsets: NDArray[np.float64]) -> _Floats:
    """[H, W, C]: each pixel is taken from [2, H, W] pixels beside it, between pixels linearly, mirrored at the edges."""
    places = np.indices(x.shape[:2]) + offsets
    channels = [map_coordinates(x[..., channel], places, order=1, mode="reflect") for channel in range(x.shape[2])]
    return np.stack(channels, axis=2)


def _resized(
    x: _Floats, height: int, width: int, how: Image.Resampling, box: tuple[float, float, float, float] | None = None
) -> _Floats:
    """box: left, top, right, bottom of what is resized, None: all."""
    channels = [Image.fromarray(np.ascontiguousarray(x[..., k])).resize((width, height), how, box=box) for k in range(x.shape[2])]
    return np.stack([np.asarray(channel) for channel in channels], axis=2)


def _plasma(shape: tuple[int, ...], decay: float, generator: np.random.Generator) -> _Floats:
    """[H, W, 1] from 0 to 1: a fractal by diamonds and squares, whose details are weaker by `decay` for each half of their size."""
    side = 1 << (max(shape) - 1).bit_length()
    heights, step, roughness = np.zeros((side, side)), side, 1.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        squares = corners + np.roll(corners, -1, axis=0)
        squares = squares + np.roll(squares, -1, axis=1)
        heights[half::step, half::step] = squares / 4 + roughness * generator.uniform(-1, 1, squares.shape)
        middles, corners = heights[half::step, half::step], heights[::step, ::step]
        across = middles + np.roll(middles, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        down = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        heights[::step, half::step] = across / 4 + roughness * generator.uniform(-1, 1, across.shape)
        heights[half::step, ::step] = down / 4 + roughness * generator.uniform(-1, 1, down.shape)
        step, roughness = half, roughness / decay
    heights -= heights.min()
    return np.asarray((heights / max(heights.max(), 1e-9))[: shape[0], : shape[1], None].astype(np.float32))
