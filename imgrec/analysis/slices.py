"""Where a classifier is worse than elsewhere: its accuracy on slices of the images, such as the dark ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.intervals import LEVEL, share_interval
from imgrec.analysis.paired import holm

QUANTILE_PARTS = 5  # into which numbers are cut, with about as many images each
MOST_SLICES = 20  # of texts that are slices of their own; the rarer ones are one together
TELLS_NOTHING = 0.2  # of an interval: one as wide, without a difference, says nothing
NO_VALUE = "(no value)"
Verdict = Literal["worse", "better", "no difference", "too few images"]


class Slicing(NamedTuple):
    """One way to divide the images."""

    by: str
    slices: tuple[str, ...]
    codes: NDArray[np.int64]  # [N], the slice of each image
    pooled: int = 0  # values that are not slices of their own


@dataclass(frozen=True)
class Slice:
    """The accuracy on the images of a slice, and on all others."""

    by: str
    name: str
    images: int
    accuracy: float
    interval: tuple[float, float]  # holds with 95% for all slices at once
    rest_accuracy: float
    p: float  # of Fisher's exact test of both
    p_corrected: float  # by Holm's method, over all slices
    verdict: Verdict


def slice_numbers(by: str, values: NDArray[np.float64], *, unit: str = "") -> Slicing:
    """Numbers [N], cut at quantiles into QUANTILE_PARTS with about as many images each; equal ones are never parted. NaN: no value."""
    known = ~np.isnan(values)
    edges = np.unique(
        np.quantile(values[known], np.arange(1, QUANTILE_PARTS) / QUANTILE_PARTS, method="inverted_cdf") if known.any() else []
    )
    _, codes = np.unique(np.where(known, np.searchsorted(edges, values), QUANTILE_PARTS), return_inverse=True)
    count = int(codes.max(initial=-1)) + 1
    names = []
    for code in range(count):
        inside = values[codes == code]
        low, high = inside.min(), inside.max()
        names.append(
            NO_VALUE if np.isnan(low) else f"{format_number(low)}{f' to {format_number(high)}' * bool(low < high)}{unit}"
        )
    return Slicing(by, tuple(names), codes.astype(np.int64))


def slice_texts(by: str, texts: Sequence[str], *, most: int = MOST_SLICES) -> Slicing:
    """Texts [N]: a slice for each value, the most frequent first; the rarest of more than `most` are pooled. "": no value."""
    counts = Counter(texts)  # a sixth of the time of np.unique, which compares texts one by one
    values = sorted(counts, key=lambda text: (-counts[text], text))
    place = {text: min(row, most) for row, text in enumerate(values)}
    codes = np.fromiter(map(place.__getitem__, texts), dtype=np.int64, count=len(texts))
    pooled = max(0, len(values) - most)
    names = [text or NO_VALUE for text in values[:most]]
    return Slicing(by, (*names, *[f"{pooled:,} rarer values"] * bool(pooled)), codes, pooled)


def slice_column(by: str, texts: Sequence[str]) -> Slicing:
    """A column of a table [N]: cut as numbers where all of its values are, and there are more than QUANTILE_PARTS of them. NaN: no value."""
    values = sorted(text for text in set(texts) if text.lower() not in ("", "nan"))
    numbers = {text: number for text in values if (number := _number(text)) is not None}
    if len(numbers) < len(values) or len(set(numbers.values())) <= QUANTILE_PARTS:
        return slice_texts(by, texts)
    return slice_numbers(by, np.array([numbers.get(text, np.nan) for text in texts]))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def format_number(value: float) -> str:
    """1234567 -> '1,234,567', 12.3456 -> '12.3', 1e300 -> '1e+300'."""
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def measure_slices(slicings: Sequence[Slicing], right: NDArray[np.bool_]) -> list[Slice]:
    """The slices of all slicings, but of those that do not divide the images. right: [N], whether each class was predicted.

    The intervals hold for all slices at once (Bonferroni), p is corrected for all of them (Holm 1979): where no slice
    differs, one is called worse or better in 5 of 100 evaluations at most.
    """
    slicings = [each for each in slicings if len(each.slices) > 1]
    counts = [np.bincount(each.codes, minlength=len(each.slices)) for each in slicings]
    hits = [np.bincount(each.codes[right], minlength=len(each.slices)) for each in slicings]
    count, hit = (np.concatenate(part) if part else np.zeros(0, dtype=np.int64) for part in (counts, hits))
    whole, whole_hits = len(right), int(right.sum())
    intervals = share_interval(hit, count, together=max(1, len(count)))
    p = [_fisher(*row, whole_hits, whole) for row in zip(hit.tolist(), count.tolist(), strict=True)]
    labels = [(each.by, name) for each in slicings for name in each.slices]
    slices = []
    for row, (corrected, (low, high)) in enumerate(zip(holm(p), intervals.tolist(), strict=True)):
        images, accuracy = int(count[row]), float(hit[row] / count[row])
        rest = float((whole_hits - hit[row]) / (whole - count[row]))
        verdict = _verdict(accuracy, rest, corrected, high - low)
        slices.append(Slice(*labels[row], images, accuracy, (low, high), rest, p[row], corrected, verdict))
    return slices


def _verdict(accuracy: float, rest: float, p: float, width: float) -> Verdict:
    if p <= 1 - LEVEL:
        return "worse" if accuracy < rest else "better"
    return "too few images" if width > TELLS_NOTHING else "no difference"


def _fisher(hits: int, images: int, whole_hits: int, whole: int) -> float:
    """Two-sided p of Fisher's exact test of a slice against the rest."""
    from scipy.stats import fisher_exact  # 1 s

    misses, rest_hits = images - hits, whole_hits - hits
    return float(fisher_exact([[hits, misses], [rest_hits, whole - images - rest_hits]]).pvalue)
