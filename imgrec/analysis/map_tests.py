"""Whether a map may be believed: it marks what the network needs, and it is of this network's weights."""

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

MARKED_SHARE = 0.1  # of the image: the highest values of a map
AREAS = 100  # random areas: the least number with which p may be below 0.01
MOST_OVERLAP = 0.5  # share of the marked area that a random one may cover, as a copy of it says nothing
SIGNIFICANT = 0.01  # p below which hiding the marked area lowers the probability more than chance does
MOST_SIMILAR = 0.5  # rank correlation with the maps of random weights, up to which a map has changed
SIDE_COMPARED = 32  # pixels: larger maps are averaged to this side before they are compared
_TRIES = 8  # draws for each random area


class HidingTest(NamedTuple):
    """What hiding the marked area did to the probability of the class, against random areas of its shape."""

    p: float  # share of the areas, with the marked one, whose hiding lowered it as much as that of the marked one
    drop: float  # of the probability by hiding the marked area
    random_drop: float  # the mean of the random ones


class MapVerdict(NamedTuple):
    """A map's two tests. hiding: None of a map that marks nothing."""

    hiding: HidingTest | None
    similarity: float  # mean rank correlation with the maps of random weights

    @property
    def supported(self) -> bool:
        return not self.reasons

    @property
    def has_changed(self) -> bool:
        """Whether the map is another with random weights."""
        return self.similarity <= MOST_SIMILAR

    @property
    def reasons(self) -> list[str]:
        """Why it is not supported."""
        if self.hiding is None:
            return ["it marks nothing"]
        said = []
        if self.hiding.p >= SIGNIFICANT or self.hiding.drop <= 0:
            said.append("hiding what it marks lowers the probability no more than hiding other areas")
        if not self.has_changed:
            said.append("it is alike with random weights")
        return said

    @property
    def sentence(self) -> str:
        return "supported" if self.supported else f"not supported: {' and '.join(self.reasons)}"


def enlarge(maps: Tensor, side: int) -> Tensor:
    """[B, h, h] -> [B, side, side]."""
    return F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]


def evidence_map(attributions: Tensor) -> Tensor:
    """[B, C, S, S] -> [B, S, S]: what speaks for the class. Not blurred: then fewer maps passed both tests, and of 64 pixels none."""
    return attributions.sum(1).clamp_min(0)


def marked_area(values: Tensor, share: float = MARKED_SHARE) -> Tensor:
    """bool [S, S]: the `share` of the pixels of a map [S, S] with the highest values, without those of 0."""
    most = max(1, round(share * values.numel()))
    area = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    area[values.flatten().topk(most).indices] = True
    return area.view_as(values) & (values > 0)


def random_areas(area: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """bool [count, S, S] of the size and shape of `area` bool [S, S]: moved around the border, turned and mirrored.

    Those that cover more than MOST_OVERLAP of it are drawn again, so far as there are others.
    """
    side, tries = len(area), _TRIES * count
    shapes = torch.stack([turned for k in range(4) for turned in (area.rot90(k), area.rot90(k).T)])
    kinds, downs, rights = (torch.randint(most, (tries,), generator=generator) for most in (8, side, side))
    places = torch.arange(side)
    rows, columns = (places - downs[:, None]) % side, (places - rights[:, None]) % side
    areas = shapes.cpu()[kinds[:, None, None], rows[:, :, None], columns[:, None, :]]
    overlap = (areas & area.cpu()).sum((1, 2))
    order = (overlap > MOST_OVERLAP * area.sum().cpu()).to(torch.int8).argsort(stable=True)
    return areas[order[:count]].to(area.device)


def hide(pixels: Tensor, areas: Tensor) -> Tensor:
    """Copies [N, C, S, S] of an image float [C, S, S], of each of which an area bool [N, S, S] has the image's mean colour."""
    return torch.where(areas[:, None], pixels.mean((1, 2), keepdim=True), pixels)


def hiding_test(
    log_odds: Callable[[Tensor], Tensor], pixels: Tensor, area: Tensor, *, count: int, generator: torch.Generator
) -> HidingTest | None:
    """A permutation test: p = (1 + the random areas whose hiding lowers the probability as much) / (1 + count).

    log_odds: of the class, float [N], for float [N, C, S, S]; its order is that of the probability, also near 1. None of an
    area without pixels.
    """
    if not area.any():
        return None
    areas = torch.cat([area[None], random_areas(area, count, generator)])
    scores = torch.cat([log_odds(pixels[None]), log_odds(hide(pixels, areas))]).double()
    drops = scores[0].sigmoid() - scores.sigmoid()
    as_low = int((scores[2:] <= scores[1]).sum())
    return HidingTest((1 + as_low) / (1 + count), float(drops[1]), float(drops[2:].mean()))


def with_random_weights(net: nn.Module, pixels: Tensor, seed: int) -> nn.Module:
    """A copy whose values are those of `net`, mixed within each parameter (Adebayo et al. 2018, arXiv 1810.03292).

    The statistics of batch norms, which belong to the weights, are those of `pixels`, float [B, C, S, S]. A copy that gives
    every picture the same logits has no map to compare with: its weights get random signs too. A dense layer behind a ReLU
    has only positive inputs, and where its weights are negative on average, mixed ones let nothing through the next ReLU.
    """
    random = deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    # moved copies: of one image the last maps may have one value a channel
    pictures = torch.cat([pixels, *(pixels.roll((move, 2 * move), (2, 3)) for move in (3, 7, 11))])
    with torch.no_grad():
        for parameter in random.parameters():
            # The order is that of int64, and half as many bytes of it are read at random: 2.5 times as fast.
            order = torch.randperm(parameter.numel(), generator=generator, dtype=torch.int32).to(parameter.device)
            parameter.copy_(parameter.flatten().index_select(0, order).view_as(parameter))
        _measure_norms(random, pictures)
        logits = random(pictures)
        if torch.allclose(logits, logits[:1]):
            for parameter in random.parameters():
                if parameter.ndim > 1:
                    signs = torch.randint(2, parameter.shape, generator=generator) * 2 - 1
                    parameter.mul_(signs.to(parameter))
            _measure_norms(random, pictures)
    return random


def _measure_norms(net: nn.Module, pictures: Tensor) -> None:
    """Give the batch norms of a network the statistics of `pictures`."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # the statistics of this batch alone
    if norms:
        net(pictures)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def rank_correlations(maps: Tensor, others: Tensor) -> NDArray[np.float64]:
    """Spearman's correlation [B] of each map [B, S, S] with the other of its row; 0 where one of them is the same everywhere."""
    ranks = [mean_ranks(_small(values).flatten(1).double().cpu().numpy()) for values in (maps, others)]
    centred = [values - values.mean(axis=1, keepdims=True) for values in ranks]
    norms = np.prod([np.linalg.norm(values, axis=1) for values in centred], axis=0)
    products: NDArray[np.float64] = (centred[0] * centred[1]).sum(axis=1)
    found: NDArray[np.float64] = np.divide(products, norms, out=np.zeros(len(norms)), where=norms > 0)
    return found


def mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row of [B, N] the ranks from 1, of equal values their mean: scipy.stats.rankdata, whose import takes over a second."""
    ranks = np.empty_like(values)
    for row, own in zip(values, ranks, strict=True):
        _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        own[:] = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return ranks


def _small(maps: Tensor) -> Tensor:
    return maps if maps.shape[-1] <= SIDE_COMPARED else F.adaptive_avg_pool2d(maps[:, None], SIDE_COMPARED)[:, 0]
