"""model=speed_cnn: its size, its first filters, and the mirror image in evaluation."""

import pytest
import torch
from torch import nn

from imgrec.models.speed_cnn import SpeedCNN


def net(*, flip_in_evaluation: bool = True) -> SpeedCNN:
    torch.manual_seed(0)
    return SpeedCNN(num_classes=10, channels=3, widths=[8, 16, 16], scale=0.5, flip_in_evaluation=flip_in_evaluation)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_records_network_has_as_many_parameters() -> None:
    """Two million (Jordan 2024), less the 192 of its batch norms' weights, which are constants there."""
    whole = SpeedCNN(num_classes=10, channels=3, widths=[64, 256, 256], scale=1 / 9, flip_in_evaluation=True)
    convolutions = 24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 2 * 256 * 256
    expected = 9 * convolutions + (24 * 12 + 24) + 2 * 2 * (64 + 256 + 256) + 2560
    assert sum(parameter.numel() for parameter in whole.parameters()) == expected


def test_in_evaluation_the_logits_are_the_mean_over_both_sides(images: torch.Tensor) -> None:
    both, one = net().eval(), net(flip_in_evaluation=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(both(images), (one(images) + one(images.flip(3))) / 2, rtol=0, atol=0)
        torch.testing.assert_close(both(images.flip(3)), both(images))
        assert not torch.allclose(one(images.flip(3)), one(images))


def test_in_training_it_is_one_pass(images: torch.Tensor) -> None:
    assert torch.equal(net().train()(images), net(flip_in_evaluation=False).train()(images))


def test_the_first_filters_hand_their_input_on(images: torch.Tensor) -> None:
    convolution = next(
        module for module in net().features.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    )
    x = torch.randn(2, 24, 9, 9)
    assert convolution.weight.shape[:2] == (8, 24)
    assert torch.equal(convolution(x), x[:, :8])


def test_the_scale_is_that_of_the_logits(images: torch.Tensor) -> None:
    scaled, plain = net().eval(), net().eval()
    plain.scale = 1.0
    with torch.no_grad():
        torch.testing.assert_close(scaled(images), plain(images) * 0.5)
