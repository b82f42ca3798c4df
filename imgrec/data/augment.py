"""Augmentation of training images; the comments of conf/augment/*.yaml say what each key means.

It has four steps: `crop_box` while a file is decoded, `sample` on the uint8 image in a worker of the data loader,
`batch` on the device before normalisation, and `mix` on the device after it. What each draws depends on (seed, epoch,
index) alone, see counter_rng.py; for `mix` on (seed, step).
"""

import math
from dataclasses import dataclass
from functools import lru_cache, reduce

import torch
from torch import Tensor
from torchvision.transforms import v2

from imgrec.config.named_values import AutoAugPolicy, Fill, Policy
from imgrec.data import counter_rng, geometry, mixup
from imgrec.data.decode import Preprocessing, fit_to_size, resize
from imgrec.errors import ConfigError

# Columns of a sample's geometry draws; fixed, so that switching a key on does not change the draws of the others.
FLIP, CROP_X, CROP_Y, ANGLE, SHIFT_X, SHIFT_Y, SHEAR, ZOOM, CORNERS, GEOMETRY_DRAWS = (*range(9), 16)

# As in torchvision's RandomErasing (Zhong et al. 2017): share of the area, ratio of height to width, attempts.
ERASE_AREA, ERASE_RATIO, ATTEMPTS = (0.02, 0.33), (0.3, 3.3), 10


@dataclass(kw_only=True, eq=False)
class Augment:
    """The augmentation that a conf/augment node describes, with the node's keys; a plain object that pickles."""

    flip: float
    flip_alternates: bool
    crop_padding: float
    crop_scale: tuple[float, float] | None
    crop_ratio: tuple[float, float]
    rotation: float
    shift: float
    shear: float
    zoom: float
    perspective: float
    elastic_alpha: float
    elastic_sigma: float
    fill: Fill
    policy: Policy
    randaug_ops: int
    randaug_magnitude: int
    autoaug_policy: AutoAugPolicy
    erase: float
    mixup: float
    cutmix: float

    def __post_init__(self) -> None:
        self._transform: v2.Transform | None = None
        if self.policy == "randaug":
            self._transform = v2.RandAugment(num_ops=self.randaug_ops, magnitude=self.randaug_magnitude)
        elif self.policy == "autoaug":
            self._transform = v2.AutoAugment(v2.AutoAugmentPolicy(self.autoaug_policy))
        elif self.policy == "trivial":
            self._transform = v2.TrivialAugmentWide()

    @property
    def needs_samples(self) -> bool:
        """Whether `crop_box` or `sample` does anything."""
        return self._transform is not None or self.crop_scale is not None

    @property
    def mixes(self) -> bool:
        """Whether `mix` does anything: then targets are soft."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def _interpolates(self) -> bool:
        return any((self.rotation, self.shift, self.shear, self.zoom, self.perspective, self.elastic_alpha))

    def crop_box(self, height: int, width: int, *, seed: int, epoch: int, index: int) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) in pixels, as v2.RandomResizedCrop (Szegedy 2014); None if `crop_scale` is None."""
        if self.crop_scale is None:
            return None
        return _draw_box(height, width, tuple(self.crop_scale), tuple(self.crop_ratio), seed, epoch, index)

    def sample(self, image: Tensor, *, seed: int, epoch: int, index: int) -> Tensor:
        """torchvision's RandAugment, AutoAugment or TrivialAugmentWide on one uint8 image [C, H, W] on the CPU.

        The state of torch's generator is kept. Gray images need no conversion: the only operation on colours,
        saturation, does not change them.
        """
        if self._transform is None:
            return image
        if image.shape[0] not in (1, 3):
            needed = f"augment.policy={self.policy} needs images with 1 or 3 channels"
            raise ConfigError(f"{needed}, not {image.shape[0]}. Set augment.policy=none.")
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the accelerators too.
            torch.default_generator.manual_seed(counter_rng.word(seed, epoch, index, counter_rng.POLICY, 0) >> 1)
            augmented: Tensor = self._transform(image)
        return augmented

    def batch(self, images: Tensor, *, seed: int, epoch: int, indices: Tensor) -> Tensor:
        """Geometry and erasing of images [B, C, H, W] on their device; indices: int64 [B], as in `Batch`.

        Images are uint8, or float in [0, 1]. Flips and crops of whole pixels alone leave them uint8, all else makes floats.
        """
        moves = self._interpolates or self.flip > 0 or self.crop_padding > 0
        if not moves and not self.erase:
            return images
        indices = indices.to(images.device)
        # Pixel positions need more digits than bf16 has, and the images of a run should not depend on its precision.
        with torch.autocast(images.device.type, enabled=False):
            if moves:
                images = self._move(images, seed, epoch, indices)
            if self.erase > 0:
                u = counter_rng.uniform(seed, epoch, indices, counter_rng.ERASE, 3 + 2 * ATTEMPTS)
                images = self._erase(_to_float(images), u)
        return images

    def mix(self, images: Tensor, targets: Tensor, partners: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix with `Batch.partners` of float images [B, C, H, W] and targets [B, K], whose rows sum to 1.

        step: the optimizer's; the micro-batches of all ranks are mixed with the same weights or box.
        """
        if not self.mixes or len(images) < 2:
            return images, targets
        height, width = images.shape[-2:]
        mix = mixup.draw_mix(self.mixup, self.cutmix, height, width, seed=seed, step=step)
        return mixup.apply_mix(images, targets, partners, mix)

    def _move(self, images: Tensor, seed: int, epoch: int, indices: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        u = counter_rng.uniform(seed, epoch, indices, counter_rng.GEOMETRY, GEOMETRY_DRAWS)
        spread = 2 * u - 1
        changes: list[Tensor] = []
        if self.flip or self.crop_padding:
            # Whole pixels, as torchvision's RandomCrop(padding) draws them.
            reach_x, reach_y = (math.floor(self.crop_padding * side + 0.5) for side in (width, height))
            dx = (u[:, CROP_X] * (2 * reach_x + 1)).floor() - reach_x
            dy = (u[:, CROP_Y] * (2 * reach_y + 1)).floor() - reach_y
            flip = u[:, FLIP] < self.flip
            if self.flip_alternates:  # Jordan 2024 (arXiv 2404.00498), section 3.6
                first = counter_rng.uniform(seed, 0, indices, counter_rng.GEOMETRY, GEOMETRY_DRAWS)
                flip = (first[:, FLIP] < self.flip) ^ bool(epoch % 2)
            if not self._interpolates:
                return geometry.flip_and_crop(images, flip, dx.long(), dy.long(), fill=self.fill)
            changes.append(geometry.flip_and_crop_map(flip, dx, dy))
        if self.rotation or self.shift or self.shear or self.zoom:
            affine = geometry.affine(
                spread[:, ANGLE] * self.rotation,
                spread[:, SHIFT_X] * (self.shift * width),
                spread[:, SHIFT_Y] * (self.shift * height),
                1 + spread[:, ZOOM] * self.zoom,
                spread[:, SHEAR] * self.shear,
            )
            changes.append(affine)
        if self.perspective:
            corners = _corners(u[:, CORNERS:].reshape(-1, 4, 2), self.perspective, height, width)
            changes.append(geometry.perspective(corners, height, width))
        identity = geometry.constant_tensor((1, 0, 0, 0, 1, 0), images.device).view(1, 2, 3)
        maps = reduce(geometry.compose_maps, changes) if changes else identity
        field = None
        if self.elastic_alpha:
            noise = counter_rng.uniform(seed, epoch, indices, counter_rng.ELASTIC, 2 * height * width).view(-1, 2, height, width)
            field = geometry.displacement(noise, self.elastic_alpha, self.elastic_sigma)
        return geometry.resample(_to_float(images), maps if self.perspective else maps[:, :2], field, fill=self.fill)

    def _erase(self, images: Tensor, u: Tensor) -> Tensor:
        # Filled with the image's mean colour, close to the paper's variant "mean"; "noise" costs a draw for each pixel.
        height, width = images.shape[-2:]
        area = height * width * (ERASE_AREA[0] + u[:, 3 : 3 + ATTEMPTS] * (ERASE_AREA[1] - ERASE_AREA[0]))
        low, high = (math.log(ratio) for ratio in ERASE_RATIO)
        ratio = torch.exp(low + u[:, 3 + ATTEMPTS :] * (high - low))
        h, w = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (h < height) & (w < width)
        first = fits.int().argmax(1, keepdim=True)  # the first attempt that fits, as in a loop
        h, w = h.gather(1, first), w.gather(1, first)
        top, left = (u[:, 1:2] * (height - h + 1)).floor(), (u[:, 2:3] * (width - w + 1)).floor()
        selected = (u[:, :1] < self.erase) & fits.any(1, keepdim=True)
        y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        rows, columns = (y >= top) & (y < top + h) & selected, (x >= left) & (x < left + w)
        return torch.where((rows[:, :, None] & columns[:, None])[:, None], images.mean((2, 3), keepdim=True), images)


@lru_cache(maxsize=1)  # it is asked for twice, before an image is decoded and after
def _draw_box(
    height: int, width: int, scale: tuple[float, float], ratios: tuple[float, float], seed: int, epoch: int, index: int
) -> tuple[int, int, int, int]:
    low, high = map(math.log, ratios)
    for k in range(ATTEMPTS):
        u = [counter_rng.unit(seed, epoch, index, counter_rng.CROP_BOX, 4 * k + j) for j in range(4)]
        area = height * width * (scale[0] + u[0] * (scale[1] - scale[0]))
        ratio = math.exp(low + u[1] * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w
    # No box fits an image with this aspect ratio: take its middle, at the nearest allowed ratio.
    ratio = min(max(width / height, ratios[0]), ratios[1])
    h, w = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
    return (height - h) // 2, (width - w) // 2, h, w


def augment_to_size(
    image: Tensor, preprocessing: Preprocessing, augment: Augment | None, *, seed: int, epoch: int, index: int, side: int | None
) -> Tensor:
    """uint8 [C, H, W] -> [C, S, S]: as in evaluation, or as the augmentation of single samples draws it. side: S, if it is not image_size."""
    if side is not None:
        preprocessing = preprocessing.copy()
        preprocessing["image_size"] = side
    if augment is None:
        return fit_to_size(image, preprocessing)
    box = augment.crop_box(*image.shape[-2:], seed=seed, epoch=epoch, index=index)
    if box is None:
        image = fit_to_size(image, preprocessing)
    else:
        top, left, height, width = box
        size = preprocessing["image_size"]
        image = resize(image[:, top : top + height, left : left + width], size, size, preprocessing["interpolation"])
    return augment.sample(image, seed=seed, epoch=epoch, index=index)


def _to_float(images: Tensor) -> Tensor:
    """Float in [0, 1] of uint8 images, or of these floats."""
    return images if images.dtype != torch.uint8 else images.to(torch.float32).div_(255)


def _corners(u: Tensor, distortion: float, height: int, width: int) -> Tensor:
    """New corners, float [B, 4, 2] pixels from the top left, as v2.RandomPerspective draws them; `u` in [0, 1)."""
    bound = geometry.constant_tensor((int(distortion * (width // 2)) + 1, int(distortion * (height // 2)) + 1), u.device)
    inward = (u * bound).floor()
    far = geometry.constant_tensor((0, 0, 1, 0, 1, 1, 0, 1), u.device).view(4, 2)  # which corners are at the right, at the bottom
    return inward + far * (geometry.constant_tensor((width - 1, height - 1), u.device) - 2 * inward)
