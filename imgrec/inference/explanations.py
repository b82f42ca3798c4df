"""Why a network says what it says of an image: maps of each method with their verdicts, and the nearest training images."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from imgrec.analysis.explain import check_layer, find_layer, grad_cam, gradient_attributions
from imgrec.analysis.map_tests import (
    AREAS,
    MapVerdict,
    enlarge,
    evidence_map,
    hiding_test,
    marked_area,
    rank_correlations,
    with_random_weights,
)
from imgrec.config.annotations import check_type
from imgrec.config.ranges import check_range
from imgrec.config.schema import MapMethod
from imgrec.files import on_progress
from imgrec.inference.arguments import BATCH_SIZE, Picture, picture_batches
from imgrec.inference.device import inference, memory_checked
from imgrec.inference.predictor import Predictor

METHODS: tuple[MapMethod, ...] = get_args(MapMethod)
METHOD_NAMES: dict[MapMethod, str] = {"gradcam": "Grad-CAM", "gradients": "integrated gradients"}
RANDOM_NETWORKS = 3  # of which one map may be alike by chance: a small map has 16 values
LOOKED_AT = 4  # images by which the layer is found


class ExplainedMap(NamedTuple):
    """A map of an image."""

    method: MapMethod
    values: Tensor  # float [S, S], 0 or more
    area: Tensor  # bool [S, S], what it marks
    verdict: MapVerdict


class Explanation(NamedTuple):
    """What a network says of an image, and why."""

    image: Tensor  # uint8 [C, S, S]
    label: int  # the predicted class, whose maps these are
    probability: float
    maps: list[ExplainedMap]


def explain_images(
    predictor: Predictor,
    images: Picture | Sequence[Picture],
    *,
    method: MapMethod = "gradients",
    layer: str | None = None,
    areas: int = AREAS,
    batch_size: int = BATCH_SIZE,
) -> list[Explanation]:
    """An Explanation with one map for each of `images`, which are as in `predict`; the other arguments as in conf/explain.yaml.

    ConfigError for a layer that is none, and for a network without a map; DataError for what cannot be read.
    """
    check_type("method", method, MapMethod)
    check_type("areas", areas, int)
    check_range("areas", areas, AREAS)
    found: list[Explanation] = []
    explainer = None
    for batch in picture_batches(images, predictor.preprocessing, batch_size):
        explainer = explainer or Explainer(predictor, batch, methods=[method], layer=layer, areas=areas)
        found += explainer.explain(batch, batch_size=batch_size)
    return found


def check_maps(predictor: Predictor, methods: Sequence[MapMethod], layer: str | None) -> None:
    """ConfigError for a layer that is none, and for a network without a map, before any image is read."""
    side = predictor.preprocessing["image_size"]
    blank = torch.zeros(1, predictor.preprocessing["channels"], side, side, dtype=torch.uint8)
    layer_of_maps(predictor, network_input(predictor, blank), methods, layer)


def layer_of_maps(predictor: Predictor, pixels: Tensor, methods: Sequence[MapMethod], layer: str | None) -> str | None:
    """The layer of Grad-CAM's maps: the given one, which is checked, else the last map before the pooling."""
    if layer is not None:
        check_layer(predictor.model, layer, pixels)
    elif "gradcam" in methods:
        return find_layer(predictor.model, pixels)
    return layer


def network_input(predictor: Predictor, images: Tensor) -> Tensor:
    """float [B, C, S, S] on the device of uint8 [B, C, S, S]."""
    pixels: Tensor = predictor.preprocess_batch(images.to(predictor.device))
    return pixels.contiguous(memory_format=predictor.memory_format)


class Explainer:
    """The maps of a predictor's network, which computes them in float32.

    layer: None, the last map before the pooling. areas: random areas that a map is held against. `images`, uint8 [B, C, S, S]:
    some of those to be explained. ConfigError for a layer that is none, and for a network without a map.
    """

    def __init__(
        self,
        predictor: Predictor,
        images: Tensor,
        *,
        methods: Sequence[MapMethod] = METHODS,
        layer: str | None = None,
        areas: int = AREAS,
    ) -> None:
        self.predictor, self.methods, self.areas = predictor, methods, areas
        pixels = network_input(predictor, images[:LOOKED_AT])
        self.layer = layer_of_maps(predictor, pixels, methods, layer)
        self._random = []
        for seed in range(RANDOM_NETWORKS):
            self._random.append(with_random_weights(predictor.model, pixels, seed))
            on_progress.get()("networks with mixed weights", 1, RANDOM_NETWORKS)

    def layer_of(self, method: MapMethod) -> str:
        """Where a method's maps are taken."""
        return self.layer or "" if method == "gradcam" else "input"

    def explain(
        self, images: Tensor, *, batch_size: int = BATCH_SIZE, watch: Callable[[], None] = lambda: None
    ) -> list[Explanation]:
        """An Explanation for each of uint8 [B, C, S, S]; the random areas are drawn anew for each, and the same whenever it is explained.

        watch: called after each map.
        """
        pixels, probabilities = network_input(self.predictor, images), self.predictor.probabilities(images)
        best = probabilities.max(dim=1)
        targets = best.indices.to(pixels.device)
        maps = [self._tested(method, pixels, targets, batch_size, watch) for method in self.methods]
        return [
            Explanation(image, label, probability, list(own))
            for image, label, probability, own in zip(
                images, best.indices.tolist(), best.values.tolist(), zip(*maps, strict=True), strict=True
            )
        ]

    def maps(self, method: MapMethod, images: Tensor) -> tuple[Tensor, list[int]]:
        """float [B, S, S] of uint8 [B, C, S, S], without a verdict, and the predicted classes that they are of."""
        pixels, labels = network_input(self.predictor, images), self.predictor.probabilities(images).argmax(1)
        return self._maps(method, self.predictor.model, pixels, labels.to(pixels.device)), labels.tolist()

    def _tested(
        self, method: MapMethod, pixels: Tensor, targets: Tensor, batch_size: int, watch: Callable[[], None]
    ) -> Iterator[ExplainedMap]:
        maps = self._maps(method, self.predictor.model, pixels, targets)
        others = [self._maps(method, net, pixels, targets) for net in self._random]
        similarity = np.mean([rank_correlations(maps, other) for other in others], axis=0).tolist()
        for number, (image, values) in enumerate(zip(pixels, maps, strict=True)):
            area, generator = marked_area(values), torch.Generator().manual_seed(0)
            odds = self._log_odds(int(targets[number]), batch_size)
            hiding = hiding_test(odds, image, area, count=self.areas, generator=generator)
            watch()
            yield ExplainedMap(method, values.cpu(), area.cpu(), MapVerdict(hiding, similarity[number]))

    def _maps(self, method: MapMethod, net: torch.nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        def compute(rows: Tensor) -> Tensor:
            some, own = pixels[rows].contiguous(memory_format=self.predictor.memory_format), targets[rows]
            if method == "gradients":
                return evidence_map(gradient_attributions(net, some, own))
            assert self.layer is not None
            return enlarge(grad_cam(net, self.layer, some, own), pixels.shape[-1])

        with memory_checked(self.predictor.device):
            return self.predictor.halving(compute, torch.arange(len(pixels), device=pixels.device))

    def _log_odds(self, label: int, batch_size: int) -> Callable[[Tensor], Tensor]:
        """log p / (1 - p) of a class, of batches; the others are added up, as 1 - p is 0 near 1."""
        predictor = self.predictor

        def log_odds(pixels: Tensor) -> Tensor:
            logits = predictor.model(pixels.contiguous(memory_format=predictor.memory_format))
            chances = predictor.loss.probabilities(logits / predictor.temperature).clamp_min(torch.finfo().tiny)
            own = chances[:, label].log()
            chances[:, label] = 0
            return own - chances.sum(1).clamp_min(torch.finfo().tiny).log()

        def of_batches(pixels: Tensor) -> Tensor:
            with inference(predictor.device, "32"):
                return torch.cat([predictor.halving(log_odds, part) for part in torch.split(pixels, batch_size)])

        return of_batches
