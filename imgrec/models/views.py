"""Several views of an image, whose logits are averaged: its mirror image, or crops (test-time augmentation)."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torchvision.transforms.v2 import functional as F

from imgrec.config.schema import Views


def mean_logits(network: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> Tensor:
    """The mean of what `network` says of each view [B, C, S, S].

    Of logits, not of probabilities, as in Jordan 2024 (arXiv 2404.00498): the softmax of the mean is the normalised geometric
    mean of the views' probabilities, and a temperature divides it as it divides the logits of one view.
    """
    total = network(views[0])
    for view in views[1:]:
        total = total + network(view)
    return total / len(views)


def image_views(images: Tensor, tta: Views | None, side: int) -> Sequence[Tensor]:
    """The views of images [B, C, H, W]: the images and their mirror images, or crops of `side` pixels, as torchvision makes them.

    crops: the corners and the centre. ten_crops: these and their mirror images.
    """
    if tta is None:
        return [images]
    if tta == "flip":
        return [images, images.flip(-1)]
    crops: Sequence[Tensor] = (F.five_crop if tta == "crops" else F.ten_crop)(images, [side, side])
    return crops
