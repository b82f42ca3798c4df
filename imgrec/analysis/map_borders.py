"""Whether the maps of a class lie on the border or in a corner of its images, where marks of a camera, a shop or a scanner are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BAND, CORNER = 1 / 8, 1 / 4  # of the side: width of the border, side of a corner
REGIONS = ("border", "upper left corner", "upper right corner", "lower left corner", "lower right corner")
AREAS_OF_REGIONS = np.array([1 - (1 - 2 * BAND) ** 2, *[CORNER**2] * 4])  # shares of the image
# Of what lies between the area and all of the map; of classes without marks it was up to 0.06, with marks 0.24 and 0.32.
MUCH = 0.15
_SIGNIFICANT = 0.01  # of all tests together


class Concentration(NamedTuple):
    """The maps of a class lie in a region of its images."""

    label: int  # the class
    region: str
    share: float  # of a map that is in the region, the mean over the images
    area: float  # share of the image that the region is
    images: int
    p: float  # of the sign test, corrected for the number of tests


def region_shares(maps: Tensor) -> NDArray[np.float64]:
    """Shares [B, 5] of each map [B, S, S] in each of REGIONS; those of the areas for a map of zeros."""
    side = maps.shape[-1]
    place = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    outer = ((place < BAND) | (place > 1 - BAND)).double()
    low, high = (place < CORNER).double(), (place > 1 - CORNER).double()
    values = maps.double().cpu()
    total = values.sum((1, 2))
    inner = torch.einsum("bij,i,j->b", values, 1 - outer, 1 - outer)
    corners = [torch.einsum("bij,i,j->b", values, rows, columns) for rows in (low, high) for columns in (low, high)]
    inside = torch.stack([total - inner, *corners], dim=1).numpy()
    whole = total.numpy()[:, None]
    shares: NDArray[np.float64] = np.where(whole > 0, inside / np.where(whole > 0, whole, 1), AREAS_OF_REGIONS)
    return shares


def find_concentrations(shares: NDArray[np.float64], labels: Sequence[int]) -> list[Concentration]:
    """Classes whose maps lie mostly in a region, the region with the largest share of each. shares: [N, 5]; labels: [N].

    The mean share is MUCH of the way from the region's area to 1, and more images than not have a larger share than the area: a
    sign test, with Bonferroni's correction for 5 regions of each class.
    """
    own = np.asarray(labels, dtype=np.int64)
    known = np.unique(own)
    found = []
    for label in known.tolist():
        rows = shares[own == label]
        if len(REGIONS) * len(known) * 0.5 ** len(rows) >= _SIGNIFICANT:  # the least p of so many images
            continue
        means = rows.mean(axis=0)
        more = (rows > AREAS_OF_REGIONS).sum(axis=0)
        excess = (means - AREAS_OF_REGIONS) / (1 - AREAS_OF_REGIONS)
        for region in np.argsort(-excess, kind="stable").tolist():
            if excess[region] < MUCH:
                break
            from scipy.stats import binomtest  # takes over a second

            p = len(REGIONS) * len(known) * float(binomtest(int(more[region]), len(rows), 0.5, "greater").pvalue)
            if p < _SIGNIFICANT:
                found.append(
                    Concentration(label, REGIONS[region], float(means[region]), float(AREAS_OF_REGIONS[region]), len(rows), p)
                )
                break
    return found
