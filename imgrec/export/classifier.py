"""All of a prediction as one module, from the bytes of an image to probabilities: what every format holds."""

import torch
from torch import Tensor, nn

from imgrec.data.preprocess import Preprocess
from imgrec.export.resize import FitToSize
from imgrec.inference.guarantee import Guarantee
from imgrec.inference.predictor import Predictor

INPUT, PROBABILITIES, PREDICTION_SET, ANSWERED = "images", "probabilities", "prediction_set", "answered"  # as files name them


class WholeClassifier(nn.Module):
    """uint8 [B, H, W, C] of any B, H and W, C as the network was trained on -> float32 [B, K], the calibrated probabilities.

    Channels come last, as PIL, OpenCV, numpy and a browser's canvas have them. With a guarantee there is a second output:
    bool [B, K], the classes in the set of each image, or bool [B], whether it is answered. Always in float32.
    """

    thresholds: Tensor

    def __init__(self, predictor: Predictor, guarantee: Guarantee | None = None) -> None:
        super().__init__()
        steps = predictor.preprocessing
        self.fit = FitToSize(steps)
        # Not the predictor's: it has a faster way for a CPU's cache, and may stand on another device.
        self.preprocess = Preprocess(
            image_size=steps["image_size"], mean=steps["mean"], std=steps["std"], interpolation=steps["interpolation"]
        )
        self.network, self.loss = predictor.model, predictor.loss
        self.temperature, self.guarantee = predictor.temperature, guarantee
        if guarantee is not None and guarantee.rule is not None:
            self.register_buffer("thresholds", torch.from_numpy(guarantee.rule.thresholds), persistent=False)

    @property
    def outputs(self) -> list[str]:
        """The names of what `forward` gives."""
        if self.guarantee is None:
            return [PROBABILITIES]
        return [PROBABILITIES, PREDICTION_SET if self.guarantee.threshold is None else ANSWERED]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.answer(self.fit(images))

    def answer(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """`forward` of images that were resized: float32 [B, C, S, S] from 0 to 255."""
        logits = self.network(torch.addcmul(self.preprocess.offset, pixels, self.preprocess.scale)).float()
        probabilities = self.loss.probabilities(logits / self.temperature)
        if self.guarantee is None:
            return probabilities
        exact = probabilities.double()  # as the thresholds, which are probabilities of validation images
        if self.guarantee.threshold is not None:
            return probabilities, exact.amax(1) > self.guarantee.threshold
        return probabilities, 1 - exact <= self.thresholds
