"""Losses against torch's, timm's and torchvision's, gradients included, and closed forms."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from imgrec.models.losses import BCE, MSE, CrossEntropy, Focal, Loss

B, K = 12, 5


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits [B, K], labels [B], one-hot [B, K], soft targets [B, K]"""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, K, generator=generator) * 3
    labels = torch.randint(K, (B,), generator=generator)
    soft = torch.rand(B, K, generator=generator).softmax(dim=1)
    return logits, labels, F.one_hot(labels, K).float(), soft


def cross_entropy(label_smoothing: float = 0.0, class_weights: Literal["none", "balanced"] = "none") -> CrossEntropy:
    return CrossEntropy(label_smoothing=label_smoothing, class_weights=class_weights, l1=0.0, l2=0.0)


def bce(label_smoothing: float = 0.0) -> BCE:
    return BCE(label_smoothing=label_smoothing, class_weights="none", l1=0.0, l2=0.0)


def mse() -> MSE:
    return MSE(class_weights="none", l1=0.0, l2=0.0)


def focal(gamma: float) -> Focal:
    return Focal(gamma=gamma, class_weights="none", l1=0.0, l2=0.0)


def equal_with_gradients(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], logits: Tensor) -> None:
    """Both give [B]; the gradients of a random weighting of the samples are compared too."""
    weighting = torch.rand(len(logits), generator=torch.Generator().manual_seed(9))
    found = []
    for function in (ours, theirs):
        x = logits.clone().requires_grad_()
        losses = function(x)
        assert losses.shape == (len(logits),)
        assert losses.dtype == torch.float32
        (losses * weighting).sum().backward()
        found.append((losses.detach(), x.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_is_torch_s(label_smoothing: float) -> None:
    logits, labels, hard, soft = drawn()
    loss = cross_entropy(label_smoothing)
    equal_with_gradients(
        lambda x: loss(x, hard), lambda x: F.cross_entropy(x, labels, reduction="none", label_smoothing=label_smoothing), logits
    )
    equal_with_gradients(
        lambda x: loss(x, soft), lambda x: F.cross_entropy(x, soft, reduction="none", label_smoothing=label_smoothing), logits
    )


def test_balanced_cross_entropy_is_torch_s_weighted_mean() -> None:
    logits, labels, hard, _ = drawn()
    loss = cross_entropy(class_weights="balanced")
    loss.set_class_counts(torch.bincount(labels, minlength=K))
    # torch divides by the sum of the samples' weights, which over the training samples themselves is their number.
    expected = F.cross_entropy(logits, labels, weight=loss.class_weight)
    torch.testing.assert_close(loss(logits, hard).mean(), expected, rtol=1e-6, atol=1e-6)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8).filter(any))
def test_balanced_weights_are_scikit_learn_s(counts: list[int]) -> None:
    loss = cross_entropy(class_weights="balanced")
    loss.set_class_counts(torch.tensor(counts))
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = np.zeros(len(counts))
    expected[np.unique(labels)] = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert loss.class_weight is not None
    assert loss.class_weight.tolist() == pytest.approx(expected)
    assert loss.class_weight[labels].mean().item() == pytest.approx(1, rel=1e-5)
    assert loss.state_dict() == {}


def test_a_mixed_sample_has_the_mean_of_its_classes_weights() -> None:
    loss, plain = cross_entropy(class_weights="balanced"), cross_entropy()
    loss.set_class_counts(torch.tensor([10, 30]))  # weights 2 and 2/3
    logits, targets = torch.tensor([[0.3, -1.0]]), torch.tensor([[0.25, 0.75]])
    torch.testing.assert_close(loss(logits, targets), plain(logits, targets) * (0.25 * 2 + 0.75 * 2 / 3))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_bce_is_torch_s_and_timm_s(label_smoothing: float) -> None:
    logits, labels, hard, soft = drawn()
    spread = soft * (1 - label_smoothing) + label_smoothing / K
    equal_with_gradients(
        lambda x: bce(label_smoothing)(x, soft),
        lambda x: F.binary_cross_entropy_with_logits(x, spread, reduction="none").mean(dim=1),
        logits,
    )
    timm_loss = pytest.importorskip("timm.loss")
    expected = timm_loss.BinaryCrossEntropy(smoothing=label_smoothing)(logits, labels)
    torch.testing.assert_close(bce(label_smoothing)(logits, hard).mean(), expected)


def test_bce_probabilities_are_the_sigmoids_over_their_sum() -> None:
    logits = drawn()[0].double()
    expected = logits.sigmoid() / logits.sigmoid().sum(dim=1, keepdim=True)
    torch.testing.assert_close(bce().probabilities(logits), expected.float())
    far = bce().probabilities(torch.tensor([[-2000.0, -2001.0]]))  # the sigmoids are 0 in float32
    torch.testing.assert_close(far, torch.tensor([[-2000.0, -2001.0]]).softmax(dim=1))


def test_mse_is_torch_s_on_the_softmax() -> None:
    logits, _, hard, _ = drawn()
    equal_with_gradients(
        lambda x: mse()(x, hard), lambda x: F.mse_loss(x.softmax(dim=1), hard, reduction="none").mean(dim=1), logits
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.0])
def test_focal_on_two_classes_is_torchvision_s_on_their_difference(gamma: float) -> None:
    logits = drawn()[0][:, :2]
    labels = torch.arange(B) % 2
    equal_with_gradients(
        lambda x: focal(gamma)(x, F.one_hot(labels, 2)),
        lambda x: sigmoid_focal_loss(x[:, 1] - x[:, 0], labels.float(), alpha=-1, gamma=gamma),
        logits,
    )


def test_focal_without_gamma_is_cross_entropy() -> None:
    logits, _, hard, soft = drawn()
    for targets in (hard, soft):
        torch.testing.assert_close(focal(0.0)(logits, targets), cross_entropy()(logits, targets))


@pytest.mark.parametrize("loss", [cross_entropy(0.1), bce(), mse(), focal(0.5), focal(2.0)])
def test_far_logits_have_finite_losses_and_gradients(loss: Loss) -> None:
    logits = torch.tensor([[500.0, -500.0, 0.0], [-500.0, 500.0, 0.0]], requires_grad=True)
    losses = loss(logits, torch.tensor([[1.0, 0.0, 0.0]] * 2))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", [cross_entropy(0.1), bce(0.1), mse(), focal(2.0)])
def test_half_precision_logits_are_lifted_first(loss: Loss) -> None:
    logits, _, hard, _ = drawn()
    half = logits.bfloat16()
    torch.testing.assert_close(loss(half, hard), loss(half.float(), hard), rtol=0, atol=0)
    assert loss.probabilities(half).dtype == torch.float32


def test_penalty_is_keras_s_definition() -> None:
    weights = [torch.nn.Parameter(torch.tensor(rows)) for rows in ([[1.0, -2.0]], [[3.0], [-0.5]])]
    assert MSE(class_weights="none", l1=0.1, l2=0.01).penalty(weights).item() == pytest.approx(0.1 * 6.5 + 0.01 * 14.25)
    assert mse().penalty(weights).item() == 0
    assert MSE(class_weights="none", l1=0.1, l2=0.01).penalty([torch.nn.Parameter(torch.zeros(2))]).item() == 0


def test_l2_pulls_under_sgd_as_twice_the_weight_decay() -> None:
    l2 = 0.03
    ours, theirs = (torch.nn.Parameter(torch.tensor([[1.0, -2.0, 0.0]])) for _ in range(2))
    MSE(class_weights="none", l1=0.0, l2=l2).penalty([ours]).backward()
    torch.optim.SGD([ours], lr=0.1).step()
    theirs.grad = torch.zeros_like(theirs)
    torch.optim.SGD([theirs], lr=0.1, weight_decay=2 * l2).step()
    torch.testing.assert_close(ours, theirs)
