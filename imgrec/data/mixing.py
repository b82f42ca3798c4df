"""Two pictures in one, with soft labels: mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019), on a whole batch."""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from imgrec.data import draws


class Mix(NamedTuple):
    """One step's mixing. A picture's partner stands `offset` places before it: any other in a shuffled batch, never itself."""

    share: float  # weight of the picture itself in the targets; its partner has the rest
    offset: int
    box: tuple[int, int, int, int] | None  # top, left, bottom, right in pixels: the partner's (cutmix); None: all blend (mixup)


def draw(mixup: float, cutmix: float, shape: tuple[int, ...], *, seed: int, step: int) -> Mix:
    """The mixing of a batch of `shape` (B, C, H, W), B at least 2: a function of (seed, step).

    `mixup` and `cutmix` are the alphas of their Beta(alpha, alpha); if both are above 0, each step takes one of them with equal
    chance.
    """
    generator = np.random.default_rng(draws.word(seed, step, 0, draws.MIX, 0))
    count, _, height, width = shape
    cuts = generator.random() < 0.5 if mixup > 0 and cutmix > 0 else cutmix > 0
    offset = int(generator.integers(1, count))
    alpha = cutmix if cuts else mixup
    share = float(generator.beta(alpha, alpha))
    if not cuts:
        return Mix(share, offset, None)
    # As in the paper and torchvision: centred on a pixel drawn anywhere, clipped at the edges; the targets follow what is left.
    half = 0.5 * math.sqrt(1.0 - share)
    y, x = int(generator.integers(height)), int(generator.integers(width))
    reach_y, reach_x = int(half * height), int(half * width)
    top, left, bottom, right = max(y - reach_y, 0), max(x - reach_x, 0), min(y + reach_y, height), min(x + reach_x, width)
    return Mix(1.0 - (bottom - top) * (right - left) / (height * width), offset, (top, left, bottom, right))


def apply(images: Tensor, targets: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """Float images [B, C, H, W] and float targets [B, K] mixed with their partners; new tensors."""
    partners = images.roll(mix.offset, 0)
    if mix.box is None:
        mixed = partners.lerp_(images, mix.share)
    else:
        top, left, bottom, right = mix.box
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return mixed, targets.roll(mix.offset, 0).lerp_(targets, mix.share)
