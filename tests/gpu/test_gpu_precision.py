"""A device trains what the CPU trains: precisions, memory format, compiled networks, fused optimizers; and what it predicts."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from gpu_run import StepLosses, everything, on, step_losses
from torch import nn

import imgrec
from imgrec.config.instantiate import instantiate
from imgrec.config.load import load_config
from imgrec.config.schema import RunConfig
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.training.optimizer import build_optimizer

# Of the loss of a step against float32 on the CPU: convolutions have 10 bits of TF32 on CUDA, 8 of bfloat16, 11 of float16.
TOLERANCE = {"32": 1e-2, "bf16-mixed": 3e-2, "16-mixed": 1e-2}
NETWORK = ("model=resnet", "optim=nesterov", "optim.lr=0.02", "augment=light", "batch_size=16")
FEW = ("data.train_samples=200", "trainer.limit_train_batches=6")


@pytest.fixture
def run(small: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    return lambda device, *words: small(*NETWORK, *FEW, *on(device), *words)


def reference(run: Callable[..., RunConfig], *words: str) -> list[float]:
    return step_losses(run("cpu", "id=reference", *words))


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("channels_last", ["true", "false"])
def test_every_precision_and_memory_format_has_the_losses_of_the_cpu(
    run: Callable[..., RunConfig], device: str, precision: str, channels_last: str
) -> None:
    if device == "cpu" and precision == "16-mixed":
        pytest.skip("imgrec refuses float16 on the CPU")
    formats: list[bool] = []

    class Formats(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            def note(module: nn.Module, args: tuple[torch.Tensor]) -> None:
                formats.append(args[0].is_contiguous(memory_format=torch.channels_last) and not args[0].is_contiguous())

            pl_module.net.register_forward_pre_hook(note)

    settings = run(device, f"trainer.precision={precision}", f"trainer.channels_last={channels_last}")
    found = step_losses(settings, Formats())
    assert len(found) == 6
    compared = 1 if precision == "16-mixed" else 6  # the scaler may leave out the first steps, which overflow
    assert found[:compared] == pytest.approx(reference(run)[:compared], rel=TOLERANCE[precision])
    assert all(map(math.isfinite, found))
    assert set(formats) == {channels_last == "true"}


def test_the_scaler_of_16_bits_skips_steps_that_overflow_and_is_in_the_checkpoint(tmp_path: Path, device: str) -> None:
    if device == "cpu":
        pytest.skip("imgrec refuses float16 on the CPU")
    losses = StepLosses()
    run = everything(tmp_path, device, "trainer.precision=16-mixed")
    imgrec.fit(run, quiet=True, callbacks=losses)
    assert all(torch.isfinite(torch.tensor(losses.values())))
    scaler = read_checkpoint(tmp_path / "r/a/checkpoints/last.ckpt")["MixedPrecision"]
    assert 0 < scaler["scale"] <= 65536
    assert scaler["scale"] == 65536 / 2 ** round(torch.log2(torch.tensor(65536 / scaler["scale"])).item())


def test_a_gradient_is_clipped_after_the_scaler_has_unscaled_it(run: Callable[..., RunConfig], device: str) -> None:
    """lr x the clipped norm is how far SGD moves the weights, whatever the scale of the gradient was."""
    precision = "16-mixed" if device == "cuda" else "bf16-mixed"
    moved: list[float] = []

    class Moved(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
            self.before = torch.cat([weight.detach().flatten().clone() for weight in pl_module.net.parameters()])

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
            after = torch.cat([weight.detach().flatten() for weight in pl_module.net.parameters()])
            moved.append(float((after - self.before).norm()))

    words = ("optim=sgd", "optim.lr=0.5", "optim.weight_decay=0", "scheduler=constant", "trainer.gradient_clip=0.001")
    step_losses(run(device, f"trainer.precision={precision}", *words), Moved())
    stepped = [distance for distance in moved if distance > 0]  # the scaler leaves out steps that overflow
    assert len(stepped) >= 3
    assert stepped == pytest.approx([0.5 * 0.001] * len(stepped), rel=2e-3)


def test_a_compiled_network_has_the_losses_of_the_one_that_is_not(run: Callable[..., RunConfig], device: str) -> None:
    """And is compiled once: the last batch of an epoch is as large as the others here."""
    from torch._dynamo.utils import counters

    words = ("model=simple_cnn", "model.widths=[4]", "model.dense=8", "model.dense_dropout=0", "epochs=2")
    found = step_losses(run(device, "trainer.compile=true", *words))
    assert found == pytest.approx(reference(run, *words), rel=TOLERANCE["32"])
    assert counters["stats"]["unique_graphs"] > 0


FUSED = ("sgd", "momentum", "nesterov", "adam", "adamw")


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_fused_optimizer_steps_as_the_plain_one(name: str, device: str) -> None:
    node = load_config("train", [f"optim={name}"]).optim
    assert node["fused"] is True
    weights = []
    for fused in (True, False):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))
        for i, parameter in enumerate(net.parameters()):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
        net.to(device)
        optimizer = build_optimizer(node | {"fused": fused}, net, batch=64, decay_on="weights", layer_decay=1.0, layers=None)
        for step in range(5):
            for i, parameter in enumerate(net.parameters()):
                generator = torch.Generator().manual_seed(100 * step + i)
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
            optimizer.step()
        weights.append([parameter.detach().cpu() for parameter in net.parameters()])
    torch.testing.assert_close(weights[0], weights[1], rtol=2e-5, atol=2e-6)


def test_a_checkpoint_predicts_the_same_on_the_device(run: Callable[..., RunConfig], device: str) -> None:
    settings = run(device)
    folder = imgrec.fit(settings, quiet=True).folder
    images = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = imgrec.load(folder, device=device).probabilities(images)
    torch.testing.assert_close(found.cpu(), imgrec.load(folder, device="cpu").probabilities(images), rtol=0, atol=5e-3)


def test_augmentation_draws_the_same_on_the_device(device: str) -> None:
    words = ["augment=affine", "augment.perspective=0.3", "augment.erase=0.5", "augment.flip=0.5", "augment.elastic_alpha=20"]
    augment = instantiate(load_config("train", words).augment)
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(16) * 7
    expected = augment.batch(images, seed=3, epoch=2, indices=indices)
    found = augment.batch(images.to(device), seed=3, epoch=2, indices=indices.to(device)).cpu()
    # Bilinear sampling at positions that differ by a rounding; an edge of an erased box is a whole pixel.
    assert (found - expected).abs().mean() < 1e-4
    assert ((found - expected).abs() > 1e-2).float().mean() < 1e-3
