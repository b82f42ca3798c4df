"""What corrupted images cost: the accuracy under each corruption, its family and all of them, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.intervals import share_interval, wilson


@dataclass(frozen=True)
class Corrupted:
    """The accuracy under a corruption, or the mean over those of a family."""

    name: str
    accuracy: float  # mean over the severities
    interval: tuple[float, float]  # 95%, over which images were taken
    by_severity: tuple[float, ...]
    severity_intervals: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Robustness:
    """The accuracy under corruptions."""

    whole: Corrupted
    families: tuple[Corrupted, ...]
    corruptions: tuple[tuple[str, Corrupted], ...]  # with the family of each


def measure_robustness(names: Sequence[str], families: Mapping[str, Sequence[str]], right: NDArray[np.bool_]) -> Robustness:
    """right: [N, len(names), severities], whether each image was right; families: their names, of which some may be missing."""
    present = {family: [row for row, name in enumerate(names) if name in members] for family, members in families.items()}
    home = {row: family for family, rows in present.items() for row in rows}
    return Robustness(
        _corrupted("all", right),
        tuple(_corrupted(family, right[:, rows]) for family, rows in present.items() if rows),
        tuple((home[row], _corrupted(name, right[:, [row]])) for row, name in enumerate(names)),
    )


def _corrupted(name: str, right: NDArray[np.bool_]) -> Corrupted:
    """right: [N, corruptions, severities]."""
    by_severity = [right[:, :, severity].mean(axis=1) for severity in range(right.shape[2])]
    means = tuple(float(shares.mean()) for shares in by_severity)
    shares = right.mean(axis=(1, 2))
    return Corrupted(name, float(shares.mean()), mean_interval(shares), means, tuple(map(mean_interval, by_severity)))


def mean_interval(shares: NDArray[np.floating]) -> tuple[float, float]:
    """The 95% interval of the mean of a share of each of N images, each from 0 to 1 and several times the same image.

    That of as many images, each right or wrong, as give a mean of that size the same variance (as Korn and Graubard 1998 do):
    of shares that are 0 or 1 the interval of a share.
    """
    count, mean, variance = len(shares), float(shares.mean()), float(shares.var())
    if np.isin(shares, (0, 1)).all():
        low, high = share_interval(round(count * mean), count)
    else:
        low, high = wilson(mean, count * mean * (1 - mean) / variance if variance else count)
    return float(low), float(high)
