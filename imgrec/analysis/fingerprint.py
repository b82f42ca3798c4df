"""What an image is recognised by, also as a copy that was resized, encoded anew, mirrored or turned: ten words of 64 bits."""

import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

SIDE, LOW = 32, 8  # of the thumbnail, and of its low frequencies, as in imagehash's phash
FLAT = 2.0  # gray levels, the deviation of a thumbnail below which its hash says nothing: noise, or the blocks of a JPEG
# Of a larger picture a part of the rows is looked at, and of a row a part of the bytes: of 500x375 one in ten. A turned copy
# is then within 6 bits for all of 700 photographs; a resize of all takes twice as long (benchmarks/NOTES.md).
SAMPLED_ROWS, SAMPLED_BYTES = 128, 256
QUARTERS = (0, 2, 1, 3)  # of a step that four rows are shifted by, so that no vertical line falls between all of them
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


def fingerprint(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint64 [WORDS] of uint8 [C, H, W], 1 gray or 3 RGB: `content_hash`, and `perceptual_hashes` of its `low_frequencies`."""
    return np.concatenate([content_hash(pixels), perceptual_hashes(low_frequencies(pixels)[None])[0]])


def content_hash(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint64 [2] of the pixels and the shape of uint8 [C, H, W].

    XXH3, 128 bits: a twentieth of the time of BLAKE2, and not made against people who want two pictures to look equal.
    """
    image = _channels_last(pixels)
    content = xxhash.xxh3_128(image.data)
    content.update(struct.pack("<3q", *image.shape))
    return np.frombuffer(content.digest(), dtype=">u8").astype(np.uint64)


class _Sampling(NamedTuple):
    """What is looked at of pictures of a shape: rows; of four rows in turn the bytes; and how these make low frequencies."""

    rows: slice
    columns: list[slice]
    of_rows: NDArray[np.float32]  # [LOW, rows]
    of_columns: NDArray[np.float32]  # [LOW, bytes of a row]


@lru_cache(maxsize=512)  # 10 KB each
def _sampling(height: int, width: int, channels: int) -> _Sampling:
    length = width * channels
    row_step, step = max(1, height // SAMPLED_ROWS), max(1, length // SAMPLED_BYTES)
    if channels == 3 and step % 3 == 0:  # it would stay with one channel
        step -= 1
    rows = np.arange((height - 1) % row_step // 2, height, row_step)
    starts = [length % step // 2 + step * (2 * quarter + 1) // 8 for quarter in QUARTERS]
    places = np.array(starts)[:, None] + step * np.arange(length // step)
    return _Sampling(
        slice(int(rows[0]), None, row_step),
        [slice(start, start + step * (length // step), step) for start in starts],
        _frequencies_at(rows.astype(np.float64), height),
        _frequencies_at((places // channels).mean(axis=0), width),
    )


def _frequencies_at(places: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """The first LOW rows of the DCT-II of SIDE values, to which those at these places of `count` pixels are resized [LOW, places].

    Bilinear with antialias, as torch resizes.
    """
    scale = count / SIDE
    centres = (np.arange(SIDE)[:, None] + 0.5) * scale - 0.5
    weights = np.clip(1 - np.abs(places - centres) / max(scale, 1), 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return DCT @ weights.astype(np.float32)


def low_frequencies(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [LOW * LOW] of uint8 [C, H, W]: of the DCT-II of a thumbnail of SIDE x SIDE, the mean of its channels.

    A row is read as its bytes, every few of them, so that channels take turns: low frequencies have their mean.
    """
    image = _channels_last(pixels)
    sampling = _sampling(*image.shape)
    rows = image.reshape(len(image), -1)[sampling.rows]
    sampled = np.empty((len(rows), sampling.of_columns.shape[1]), dtype=np.uint8)
    for row, columns in enumerate(sampling.columns):
        sampled[row::4] = rows[row::4, columns]
    levels = sampled.astype(np.float32)  # in a step of its own: 48 us in all, not 60
    low: NDArray[np.float32] = np.dot(np.dot(sampling.of_rows, levels), sampling.of_columns.T).ravel()
    return low


def _channels_last(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [H, W, C] of uint8 [C, H, W]; no copy of what `decode` gives."""
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))  # between decodes the same by torch takes 50 us


def perceptual_hashes(low: NDArray[np.float32]) -> NDArray[np.uint64]:
    """uint64 [N, 8] of `low_frequencies` [N, 64]: imagehash's phash (N. Krawetz, "Looks Like It", 2011), upright first.

    A bit for each frequency, whether it is above their median; in eight orientations. 0 for a picture of nearly one colour,
    whose hash would say nothing. Many at once take 3 us each, one by one 12, and 100 between other work.
    """
    values = low[:, PLACES] * SIGNS  # [N, 8, 64]
    middle = np.partition(values, (31, 32), axis=-1)[..., 31:33].sum(axis=-1, keepdims=True) / 2
    hashes = np.packbits(values > middle, axis=-1).view(">u8")[..., 0].astype(np.uint64)
    hashes[(low * low) @ VARIANCE < FLAT**2] = 0
    return hashes
