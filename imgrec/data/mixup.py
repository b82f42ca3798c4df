"""Two pictures in one, with soft labels: mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019), on a whole batch.

A picture's partner is its neighbour in the global batch: places 0 and 1, 2 and 3, ...; the last three of an odd batch rotate, and
a batch of one is left alone. Neighbours in an epoch whose order was drawn are as random as any permutation of the batch would make
them, and they let the order be cut between ranks and micro-batches without parting any: so the same pictures are mixed on any
number of devices. How they are mixed is a function of (seed, optimizer step).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from imgrec.data import counter_rng
from imgrec.data.batch import Indices


class Mix(NamedTuple):
    """One step's mixing."""

    share: float  # weight of the picture itself in the targets; its partner has the rest
    box: tuple[int, int, int, int] | None  # top, left, bottom, right in pixels: the partner's (cutmix); None: all blend (mixup)


def partners(kept: Indices, asked: int) -> Indices:
    """Place of each picture's partner among those that are there, int64 [B]: the next of its pair or three, around.

    `kept`, ascending, are the pictures' places in the request of `asked`: a file that could not be read leaves its partner to the
    third, or alone (its own partner), and parts no other pair.
    """
    return _partners(None if len(kept) == asked else tuple(kept.tolist()), asked)


@lru_cache(maxsize=64)  # all batches of an epoch have the same, unless files cannot be read
def _partners(kept_places: tuple[int, ...] | None, asked: int) -> Indices:
    kept = np.array(range(asked) if kept_places is None else kept_places, dtype=np.int64)
    group = np.minimum(kept // 2, max(asked // 2 - 1, 0))
    places = np.arange(len(kept), dtype=np.int64)
    there = np.append(group[1:] == group[:-1], False)[: len(kept)]  # whether the next one is of the same group
    return np.where(there, places + 1, np.searchsorted(group, group))


def draw_mix(mixup: float, cutmix: float, height: int, width: int, *, seed: int, step: int) -> Mix:
    """The mixing of pictures of `height` x `width`: a function of (seed, step).

    `mixup` and `cutmix` are the alphas of their Beta(alpha, alpha); if both are above 0, each step takes one of them with equal
    chance.
    """
    generator = np.random.default_rng(counter_rng.word(seed, step, 0, counter_rng.MIX, 0))
    cuts = generator.random() < 0.5 if mixup > 0 and cutmix > 0 else cutmix > 0
    alpha = cutmix if cuts else mixup
    share = float(generator.beta(alpha, alpha))
    if not cuts:
        return Mix(share, None)
    # As in the paper and torchvision: centred on a pixel drawn anywhere, clipped at the edges; the targets follow what is left.
    half = 0.5 * math.sqrt(1.0 - share)
    y, x = int(generator.integers(height)), int(generator.integers(width))
    reach_y, reach_x = int(half * height), int(half * width)
    top, left, bottom, right = max(y - reach_y, 0), max(x - reach_x, 0), min(y + reach_y, height), min(x + reach_x, width)
    return Mix(1.0 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


def apply_mix(images: Tensor, targets: Tensor, partners: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """Float images [B, C, H, W] and float targets [B, K] mixed with their `partners` (int64 [B]); new tensors."""
    others = targets.index_select(0, partners).lerp_(targets, mix.share)
    if mix.box is None:
        # Given a place to write to, index_select keeps channels_last: 2.8 times as fast here as without, on the CPU.
        mixed = torch.index_select(images, 0, partners, out=torch.empty_like(images))
        return mixed.lerp_(images, mix.share), others
    top, left, bottom, right = mix.box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right].index_select(0, partners)
    return mixed, others
