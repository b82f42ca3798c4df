"""What an image is recognised by, also as a copy that was resized, encoded anew, mirrored or turned: ten words of 64 bits."""

import struct

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

SIDE, LOW = 32, 8  # of the thumbnail, and of its low frequencies, as in imagehash's phash
FLAT = 2.0  # gray levels, the deviation of a thumbnail below which its hash says nothing: noise, or the blocks of a JPEG
GRAY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # PIL's convert("L")
CONTENT_WORDS, ORIENTATIONS = 2, 8
WORDS = CONTENT_WORDS + ORIENTATIONS


def _low_frequencies() -> NDArray[np.float32]:
    """The first LOW rows of the DCT-II of SIDE values [LOW, SIDE], as scipy.fft.dct without a norm."""
    return (2 * np.cos(np.pi * np.outer(np.arange(LOW), 2 * np.arange(SIDE) + 1) / (2 * SIDE))).astype(np.float32)


def _orientations() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each orientation where its coefficients are in the upright one, and their signs: [8, 64] each.

    A mirrored picture has the same coefficients with the odd ones of that axis negated; a transposed one has them transposed.
    The order is (transposed, rows reversed, columns reversed), binary; the upright picture is the first.
    """
    places = np.arange(LOW * LOW).reshape(LOW, LOW)
    odd = np.where(np.arange(LOW) % 2, -1.0, 1.0)
    rows, columns = np.broadcast_to(odd[:, None], (LOW, LOW)), np.broadcast_to(odd, (LOW, LOW))
    kinds = [(t, r, c) for t in (False, True) for r in (False, True) for c in (False, True)]
    index = np.stack([(places.T if t else places).ravel() for t, _, _ in kinds])
    signs = np.stack([((rows if r else 1.0) * (columns if c else 1.0) * np.ones((LOW, LOW))).ravel() for _, r, c in kinds])
    return index, signs.astype(np.float32)


def _variance_shares() -> NDArray[np.float32]:
    """What the squares of the low frequencies [64] count in the variance of a thumbnail (Parseval); the mean nothing."""
    scale = np.full(LOW, 1 / (2 * SIDE))
    scale[0] /= 2
    shares = np.outer(scale, scale).ravel() / SIDE**2
    shares[0] = 0
    return shares.astype(np.float32)


DCT = _low_frequencies()
VARIANCE = _variance_shares()
PLACES, SIGNS = _orientations()


def fingerprint(pixels: Tensor | NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint64 [WORDS] of uint8 [C, H, W], 1 gray or 3 RGB: `content_hash`, and `perceptual_hashes` of its `small_picture`."""
    return np.concatenate([content_hash(pixels), perceptual_hashes(small_picture(pixels)[None])[0]])


def content_hash(pixels: Tensor | NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint64 [2] of the pixels and the shape of uint8 [C, H, W].

    XXH3, 128 bits: a twentieth of the time of BLAKE2, and not made against people who want two pictures to look equal.
    """
    image = _channels_last(pixels)
    content = xxhash.xxh3_128(image.numpy().data)
    content.update(struct.pack("<3q", *image.shape))
    return np.frombuffer(content.digest(), dtype=">u8").astype(np.uint64)


def small_picture(pixels: Tensor | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [C, SIDE, SIDE] of uint8 [C, H, W]."""
    image = _channels_last(pixels)[None].permute(0, 3, 1, 2)
    small: NDArray[np.uint8] = interpolate(image, (SIDE, SIDE), mode="bilinear", antialias=True)[0].numpy()
    return small


def _channels_last(pixels: Tensor | NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W, C] of uint8 [C, H, W]; no copy of what `decode` gives."""
    if not isinstance(pixels, Tensor):  # torch warns of arrays that are read-only
        pixels = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    return pixels.permute(1, 2, 0).contiguous()


def perceptual_hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint64 [N, 8] of uint8 [N, C, SIDE, SIDE]: imagehash's phash (N. Krawetz, "Looks Like It", 2011), upright first.

    64 low frequencies of a thumbnail, each a bit, whether it is above their median; in eight orientations. 0 for a picture of nearly
    one colour, whose hash would say nothing. Many at once take 3 us each, one by one 12, and 100 between other work.
    """
    levels = thumbnails.astype(np.float32)
    gray = levels[:, 0] if levels.shape[1] == 1 else np.tensordot(levels, GRAY, (1, 0))
    low = (DCT @ gray @ DCT.T).reshape(-1, LOW * LOW)
    values = low[:, PLACES] * SIGNS  # [N, 8, 64]
    middle = np.partition(values, (31, 32), axis=-1)[..., 31:33].sum(axis=-1, keepdims=True) / 2
    hashes = np.packbits(values > middle, axis=-1).view(">u8")[..., 0].astype(np.uint64)
    hashes[(low * low) @ VARIANCE < FLAT**2] = 0
    return hashes
