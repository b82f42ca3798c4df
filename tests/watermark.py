"""Networks that know three classes by a mark alone, two marks and none, and how often a map points at it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgrec.analysis.explain import find_layer, grad_cam, gradient_attributions
from imgrec.analysis.map_tests import enlarge, evidence_map

MARKS = 2  # classes with a mark; the next has none, so that a network has to see both marks and not the absence of one
BATCH = 18
LOW, LOW_STEPS = 0.05, 10  # loss of so many batches in a row after which a network knows the marks


def marked_images(count: int, side: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Float [N, 3, S, S] of spots and noise with stripes somewhere, across or upright, the class, and the row and column of the mark."""
    draw = torch.Generator().manual_seed(seed)
    spots = F.interpolate(torch.randn(count, 3, side // 4, side // 4, generator=draw), (side, side), mode="bilinear")
    images = 0.7 * spots + 0.5 * torch.randn(count, 3, side, side, generator=draw)
    labels, mark = torch.arange(count) % (MARKS + 1), side // 5
    corners = torch.randint(side - mark, (count, 2), generator=draw)
    stripes = (torch.arange(mark) // 2 % 2 * 4.0 - 2)[:, None].expand(mark, mark)
    for image, label, (row, column) in zip(images, labels, corners.tolist(), strict=True):
        if label < MARKS:
            image[:, row : row + mark, column : column + mark] = stripes if label else stripes.T
    return images, labels, corners


def learn_marks(net: nn.Module, side: int, most_steps: int) -> None:
    """Adam, until the loss stays low; without dropout, and with the statistics of batch norms of the last weights."""
    net.train()
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3 if has_norms else 2e-4)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if hasattr(net, "set_from_images"):
        net.set_from_images([marked_images(BATCH, side, 0)[0]])
    low = 0
    for step in range(most_steps):
        images, labels, _ = marked_images(BATCH, side, step)
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        low = low + 1 if loss < LOW else 0
        if low == LOW_STEPS:
            break
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches below
    with torch.no_grad():
        for step in range(8):
            net(marked_images(BATCH, side, most_steps + step)[0])
    net.eval()


def pointed_at(net: nn.Module, side: int, count: int = 60) -> tuple[float, dict[str, float]]:
    """The accuracy, and of each method the share of the right images with a mark whose map's highest value is in it.

    Of Grad-CAM half a value of the layer beside it counts too, as its values stand for so much. Gradients are of single pixels:
    the centre of the square of the mark's size that has most of them, or a pixel beside it.
    """
    images, labels, corners = marked_images(count, side, 99_999)
    with torch.no_grad():
        right = torch.cat([net(part).argmax(1) for part in images.split(BATCH)]) == labels
    shown = right & (labels < MARKS)
    images, labels, corners = images[shown], labels[shown], corners[shown]
    layer = find_layer(net, images[:2])
    parts = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    cam = torch.cat([grad_cam(net, layer, *part) for part in parts])
    gradients = torch.cat([evidence_map(gradient_attributions(net, *part)) for part in parts])
    found = {
        "gradcam": _inside(enlarge(cam, side), corners, side // cam.shape[-1] // 2),
        "gradients": _inside(_averaged(gradients, side // 5), corners, 1),
    }
    return float(right.double().mean()), found


def _averaged(maps: Tensor, width: int) -> Tensor:
    width += 1 - width % 2
    return F.avg_pool2d(maps[:, None], width, 1, width // 2)[:, 0]


def _inside(maps: Tensor, corners: Tensor, tolerance: int) -> float:
    side = maps.shape[-1]
    highest = maps.flatten(1).argmax(1)
    places = torch.stack([highest // side, highest % side], dim=1)
    inside = (places >= corners - tolerance) & (places < corners + side // 5 + tolerance)
    return float(inside.all(1).double().mean())
