"""model=speed_cnn: its size, its first filters, those that whiten patches, and the mirror image in evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from resumed_runs import kill_run
from torch import nn

from imgrec import config
from imgrec.data.datamodule import build_data
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.models.speed_cnn import SpeedCNN, Whitening
from imgrec.train import fit
from imgrec.training.step_boundary import StepBoundary

WORDS = (
    "data=fake data.num_classes=3 data.train_samples=40 data.test_samples=8 data.image_size=16 model=speed_cnn model.widths=[4,4,4] epochs=1 "
    "batch_size=8 trainer.accelerator=cpu trainer.devices=1 trainer.save_every_steps=1 logger=none name=r id=a"
)
EPS = 5e-4


def net(*, flip_in_evaluation: bool = True) -> SpeedCNN:
    torch.manual_seed(0)
    return SpeedCNN(num_classes=10, channels=3, widths=[8, 16, 16], scale=0.5, flip_in_evaluation=flip_in_evaluation)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_records_network_has_as_many_parameters() -> None:
    """Two million (Jordan 2024); the kernels that whiten are not trained, as there, and the weights of batch norms are."""
    whole = SpeedCNN(num_classes=10, channels=3, widths=[64, 256, 256], scale=1 / 9, flip_in_evaluation=True)
    convolutions = 24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 2 * 256 * 256
    expected = 9 * convolutions + 24 + 2 * 2 * (64 + 256 + 256) + 2560
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


def patch_covariance(images: torch.Tensor) -> NDArray[np.float64]:
    """Second moments of all patches of 2x2, [values, values], by numpy."""
    windows = sliding_window_view(images.double().numpy(), (2, 2), axis=(2, 3))  # [N, C, rows, columns, 2, 2]
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * 4)
    return patches.T @ patches / len(patches)


def assert_whitens(kernels: torch.Tensor, images: torch.Tensor) -> None:
    """W (C + eps) W^T = 1, whatever the order and the signs of the axes; and the negatives of W behind it."""
    values = kernels.shape[1] * 4
    first, second = kernels.double().reshape(2, values, values).numpy()
    np.testing.assert_array_equal(first, -second)
    within = patch_covariance(images) + EPS * np.eye(values)
    np.testing.assert_allclose(first @ within @ first.T, np.eye(values), rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_of_the_images_are_whitened(channels: int) -> None:
    smooth = torch.randn(50, channels, 12, 12, generator=torch.Generator().manual_seed(2)).cumsum(2).cumsum(3) / 12
    whitening = Whitening(channels)
    whitening.set_from_images([smooth[:7], smooth[7:]])
    assert_whitens(whitening.weight, smooth)
    variances = np.linalg.eigvalsh(patch_covariance(smooth))
    answers = whitening(smooth)[:, : 4 * channels].detach().double().square().mean((0, 2, 3))
    np.testing.assert_allclose(np.sort(answers), variances / (variances + EPS), rtol=1e-4)


def test_before_it_is_set_the_values_of_a_patch_and_their_negatives_are_handed_on() -> None:
    x = torch.randn(2, 1, 4, 5)
    answers = Whitening(1)(x)
    assert torch.equal(answers[:, :4], -answers[:, 4:])
    assert torch.equal(answers[:, 0], x[:, 0, :-1, :-1])
    assert torch.equal(answers[:, 3], x[:, 0, 1:, 1:])


def test_a_training_whitens_patches_of_its_own_images_and_a_resumed_one_keeps_it(tmp_path: Path) -> None:
    run = config.load("train", [*WORDS.split(), f"runs_dir={tmp_path}"])
    kill_run(run, 3, StepBoundary, "on_before_optimizer_step")
    last = tmp_path / "r" / "a" / "checkpoints" / "last.ckpt"
    key = "net.features.0.weight"
    kernels = read_checkpoint(last)["state_dict"][key]
    images = build_data(run)[0].splits.train.images.float() / 255  # type: ignore[attr-defined]
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (run.data.mean, run.data.std))
    assert_whitens(kernels, (images - mean) / std)
    fit(run, quiet=True)
    assert torch.equal(read_checkpoint(last)["state_dict"][key], kernels)
