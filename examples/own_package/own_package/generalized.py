"""A loss for labels of which some are wrong."""

from torch import Tensor

from imgrec.errors import ConfigError
from imgrec.models.losses import ClassWeights, Loss


class GeneralizedCrossEntropy(Loss):
    """(1 - p^q) / q, p the probability of the target (Zhang 2018); near cross-entropy for a small q, and mean absolute error at 1."""

    def __init__(self, *, q: float, class_weights: ClassWeights, l1: float, l2: float) -> None:
        super().__init__(class_weights=class_weights, l1=l1, l2=l2)
        if not 0 < q <= 1:
            raise ConfigError(f"loss.q={q}: q must be more than 0 and at most 1. Set loss.q=0.7.")
        self.q = q

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits, targets: float32 [B, K] -> float32 [B]."""
        powers = (self.q * logits.log_softmax(dim=1)).exp()
        return (targets * (1 - powers)).sum(dim=1) / self.q
