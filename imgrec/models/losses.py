"""Losses on logits and soft targets, per sample, with class weights and weight penalties."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from imgrec.config.named_values import ClassWeights
from imgrec.errors import ConfigError


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """int64 [B] -> [B, K]. torch's own looks at the smallest and the largest label first, and makes int64 of them."""
    return torch.zeros(len(labels), classes, dtype=dtype, device=labels.device).scatter_(1, labels[:, None], 1)


class Loss(nn.Module):
    """Base class. A subclass defines `per_sample`; class weights, penalties and the conversion to float32 are here.

    class_weights: "balanced" gives class c the weight n / (K * n_c), where n_c of the n training samples are of class c
    and K classes have samples (scikit-learn's compute_class_weight): all classes weigh the same, the mean weight is 1.
    Without samples it is 0.
    """

    class_weight: Tensor | None  # float32 [K]

    def __init__(self, *, class_weights: ClassWeights, l1: float, l2: float) -> None:
        super().__init__()
        self.class_weights, self.l1, self.l2 = class_weights, l1, l2
        # Not in the state dict: it depends on the training data, and a checkpoint can be used with other data.
        self.register_buffer("class_weight", None, persistent=False)

    def set_class_counts(self, counts: Tensor) -> None:
        """counts: int64 [K], training samples of each class. Does nothing with class_weights="none"."""
        if self.class_weights == "balanced":
            weight = counts.sum().double() / ((counts > 0).sum() * counts)
            self.class_weight = torch.where(counts > 0, weight, 0.0).float()

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """float32 [B, K], float32 [B, K] -> float32 [B], before class weights."""
        raise NotImplementedError

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Each sample's loss, float32 [B], from logits and targets, float [B, K]; targets sum to 1 (one-hot or mixed).

        A sample's class weight is the mean of the class weights under its targets. A batch's loss is the plain mean.
        """
        losses = self.per_sample(logits.float(), targets.float())
        if losses.shape != (len(logits),):
            raise ConfigError(
                f"loss {type(self).__name__} answers {len(logits)} samples with {list(losses.shape)}: expected a loss for each, "
                f"[{len(logits)}]. Return no mean of them: per_sample(logits, targets)."
            )
        if self.class_weights == "none":
            return losses
        assert self.class_weight is not None, "set_class_counts has to be called before a balanced loss"
        return losses * (targets.float() @ self.class_weight)

    def probabilities(self, logits: Tensor) -> Tensor:
        """float [B, K] -> float32 [B, K], rows sum to 1."""
        return logits.float().softmax(dim=1)

    def penalty(self, parameters: Sequence[Parameter]) -> Tensor:
        """l1 * sum |w| + l2 * sum w^2 over the parameters (Keras's definition: l2 is not halved), a scalar.

        Its gradient is 2 * l2 * w: with plain SGD l2=0.0005 equals weight_decay=0.001.
        `imgrec.training.optimizer.decayed` selects them.
        """
        total = torch.zeros((), device=parameters[0].device if parameters else None)
        if self.l1 > 0:
            total = total + self.l1 * torch.stack([weight.abs().sum() for weight in parameters]).sum()
        if self.l2 > 0:
            total = total + self.l2 * torch.stack([weight.square().sum() for weight in parameters]).sum()
        return total


def answered(loss: Loss, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
    """The probabilities with a temperature, and those without; None where it is 1. float32 [B, K]."""
    without = loss.probabilities(logits)
    return (without, None) if temperature == 1 else (loss.probabilities(logits / temperature), without)


def is_softmax(loss: Loss) -> bool:
    """Whether the probabilities of a loss are the softmax of its logits."""
    return type(loss).probabilities is Loss.probabilities


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of each sample, float [B, K], float [B, K] -> float32 [B] (Hinton 2015, arXiv 1503.02531).

    The probabilities of both are the softmax of logits / T. T^2 keeps the size of the gradient when T changes.
    """
    ours, theirs = ((scores.float() / temperature).log_softmax(dim=1) for scores in (logits, teacher))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1) * temperature**2


class CrossEntropy(Loss):
    """-sum_c t_c log p_c, with targets smoothed to (1 - e) t_c + e / K (Szegedy 2016, Inception-v3, section 7)."""

    def __init__(self, *, label_smoothing: float, class_weights: ClassWeights, l1: float, l2: float) -> None:
        super().__init__(class_weights=class_weights, l1=l1, l2=l2)
        self.label_smoothing = label_smoothing

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)


class MSE(Loss):
    """Mean over the classes of (p_c - t_c)^2, p the softmax (the Brier score divided by K)."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(logits.softmax(dim=1), targets, reduction="none").mean(dim=1)


class BCE(CrossEntropy):
    """Binary cross-entropy of each class's sigmoid with the same targets, mean over the classes.

    timm's BinaryCrossEntropy; Wightman 2021, "ResNet strikes back". The mean divides gradients by K: SGD needs a higher
    learning rate.
    """

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / targets.shape[1]
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(dim=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The sigmoids divided by their sum, as one class is right; in logarithms, as small sigmoids would give 0 / 0."""
        return F.logsigmoid(logits.float()).softmax(dim=1)


class Focal(Loss):
    """-sum_c t_c (1 - p_c)^gamma log p_c, p the softmax (Lin 2017, here for exclusive classes); gamma 0 is cross-entropy."""

    def __init__(self, *, gamma: float, class_weights: ClassWeights, l1: float, l2: float) -> None:
        super().__init__(class_weights=class_weights, l1=l1, l2=l2)
        self.gamma = gamma

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = logits.log_softmax(dim=1)
        # The floor keeps the gradient of (1 - p)^gamma finite at p = 1 for gamma < 1.
        missing = (-torch.expm1(log_p)).clamp_min(torch.finfo(torch.float32).eps)
        return -(targets * missing**self.gamma * log_p).sum(dim=1)
