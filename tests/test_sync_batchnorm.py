"""Synchronised batch norm against nn.BatchNorm over the whole batch: output, running statistics and gradients, whatever each process holds."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from processes import run_ranks
from torch import Tensor, nn

from imgrec.config import load
from imgrec.distributed.device_checks import trains_on_cuda
from imgrec.distributed.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm, has_sync_batchnorm
from imgrec.errors import ConfigError
from imgrec.models.resnet import resnet
from imgrec.training.callbacks.freeze import freeze


def parts(shape: tuple[int, ...], counts: list[int], dtype: torch.dtype) -> list[Tensor]:
    """A batch far from 0, where E[x^2] - E[x]^2 would lose its digits, cut into the parts of the processes."""
    whole = torch.randn(sum(counts), *shape, generator=torch.Generator().manual_seed(1)) * 3 + 100
    return list(whole.to(dtype).split(counts))


def step(norm: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Two training passes; what came out, and the gradients of a sum that treats every sample alike, but not every value."""
    for _ in range(2):
        norm.zero_grad()
        x = x.detach().requires_grad_()
        out = norm(x)
        weights = torch.arange(out[:1].numel(), dtype=torch.float64, device=out.device).view(out[:1].shape).sin()
        (out.double() * weights + out.double().square() * weights).sum().backward()
    found = {"out": out.detach(), "grad": x.grad, **{f"d{name}": p.grad for name, p in norm.named_parameters()}}
    return found | {name: value.clone() for name, value in norm.state_dict().items()}


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "2d": (lambda: nn.BatchNorm2d(5), (5, 4, 3)),
    "channels of one value": (lambda: nn.BatchNorm2d(5), (5, 1, 1)),
    "1d": (lambda: nn.BatchNorm1d(5), (5,)),
    "3d": (lambda: nn.BatchNorm3d(2), (2, 2, 3, 2)),
    "cumulative mean": (lambda: nn.BatchNorm2d(5, momentum=None), (5, 4, 3)),
    "without weights": (lambda: nn.BatchNorm2d(5, affine=False), (5, 4, 3)),
    "without running statistics": (lambda: nn.BatchNorm2d(5, track_running_stats=False), (5, 4, 3)),
    "eps and momentum": (lambda: nn.BatchNorm2d(5, eps=0.1, momentum=0.7), (5, 4, 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "counts", [[2, 1, 3], *(pytest.param(counts, marks=pytest.mark.slow) for counts in ([3, 3], [4, 1], [4, 0], [0, 4]))], ids=str
)
def test_the_statistics_are_those_of_the_whole_batch(counts: list[int]):
    norms = {}
    for name, (make, _) in CASES.items():
        torch.manual_seed(0)
        norms[name] = make()
        for parameter in norms[name].parameters():
            nn.init.normal_(parameter)
    cases = [(name, dtype) for name in CASES for dtype in (torch.float32, torch.float64)]

    def work(rank: int) -> list[dict[str, Tensor]]:
        found = []
        for name, dtype in cases:
            norm = convert_sync_batchnorm(copy.deepcopy(norms[name]).to(dtype), on_cuda=False)
            found.append(step(norm, parts(CASES[name][1], counts, dtype)[rank]))
        return found

    ranks = run_ranks(len(counts), work, group=True)
    for i, (name, dtype) in enumerate(cases):
        expected = step(copy.deepcopy(norms[name]).to(dtype), torch.cat(parts(CASES[name][1], counts, dtype)))
        close: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
        for key, value in expected.items():
            each = [found[i][key] for found in ranks]
            if key in ("out", "grad"):
                united = torch.cat(each)
            elif key.startswith("d"):
                united = torch.stack(each).sum(0)  # what a strategy does
            else:
                united = each[0]
                assert all(torch.equal(one, each[0]) for one in each), key
            torch.testing.assert_close(united, value, msg=lambda text, at=(name, key): f"{at}: {text}", **close)


def test_in_bfloat16_an_empty_part_speaks_the_same_numbers():
    def work(rank: int) -> dict[str, Tensor]:
        norm = convert_sync_batchnorm(nn.BatchNorm2d(5), on_cuda=False)
        return step(norm, parts((5, 4, 3), [4, 0], torch.bfloat16)[rank])

    first, second = run_ranks(2, work, group=True)
    expected = step(nn.BatchNorm2d(5), torch.cat(parts((5, 4, 3), [4, 0], torch.bfloat16)))
    assert first["out"].dtype == first["grad"].dtype == torch.bfloat16
    for key in ("running_mean", "running_var"):
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], expected[key])
    torch.testing.assert_close(first["out"], expected["out"])
    torch.testing.assert_close(first["grad"], expected["grad"], rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_a_network_gives_the_gradients_of_the_whole_batch():
    torch.manual_seed(0)
    net = resnet(num_classes=3, channels=1, depth=20, stem="small", zero_init_residual=False)
    images = torch.randn(6, 1, 8, 8)

    def gradients(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
        net(images).square().sum().backward()
        return {name: p.grad for name, p in net.named_parameters()}

    ranks = run_ranks(
        2, lambda rank: gradients(convert_sync_batchnorm(net, on_cuda=False), images.split([4, 2])[rank]), group=True
    )
    expected = gradients(net, images)
    for name, value in expected.items():
        torch.testing.assert_close(ranks[0][name] + ranks[1][name], value, rtol=1e-3, atol=1e-3)


def test_names_tensors_and_modes_stay():
    net = resnet(num_classes=3, channels=1, depth=20, stem="small", zero_init_residual=False)
    before = dict(net.named_parameters())
    plain = copy.deepcopy(net)
    assert convert_sync_batchnorm(net, on_cuda=False) is net
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert list(net.state_dict()) == list(plain.state_dict())
    assert all(value is before[name] for name, value in net.named_parameters())
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(net(images), plain(images))  # one process: the plain one
    assert torch.equal(net.eval()(images), plain.eval()(images))
    plain.load_state_dict(net.state_dict())
    freeze(net.train(), 3)
    assert not any(module.training for module in net.modules() if isinstance(module, SyncBatchNorm))


def test_timms_norm_keeps_its_activation():
    timm = pytest.importorskip("timm")
    net = timm.create_model("regnetx_002", num_classes=3)
    assert any(type(module).__name__ == "BatchNormAct2d" for module in net.modules())
    plain = copy.deepcopy(net)
    convert_sync_batchnorm(net, on_cuda=False)
    assert list(net.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.eval()(images), plain.eval()(images))


def test_what_cannot_be_synchronised_is_said():
    with pytest.raises(ConfigError, match=r"sync_batchnorm=true.*Linear"):
        convert_sync_batchnorm(nn.Linear(2, 2), on_cuda=False)
    with pytest.raises(ConfigError, match=r"0 of Sequential.*SyncBatchNorm"):
        convert_sync_batchnorm(nn.Sequential(nn.SyncBatchNorm(2)), on_cuda=False)


@pytest.mark.parametrize(("accelerator", "norm"), [("auto", nn.SyncBatchNorm), ("gpu", nn.SyncBatchNorm), ("cpu", SyncBatchNorm)])
def test_cuda_has_torchs_norm_and_the_cpu_ours(monkeypatch: pytest.MonkeyPatch, accelerator: str, norm: type):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = load("train", ["data=fake", f"trainer.accelerator={accelerator}"]).trainer
    net = resnet(num_classes=3, channels=1, depth=20, stem="small", zero_init_residual=False)
    plain, before = copy.deepcopy(net), dict(net.named_parameters())
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert not has_sync_batchnorm(net)
    net = convert_sync_batchnorm(net, on_cuda=trains_on_cuda(config))
    assert has_sync_batchnorm(net)
    assert {type(net.get_submodule(name)) for name in norms} == {norm}
    assert list(net.state_dict()) == list(plain.state_dict())
    assert all(value is before[name] for name, value in net.named_parameters())
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(net.eval()(images), plain.eval()(images))


def test_on_cuda_timms_norm_keeps_its_activation_too():
    timm = pytest.importorskip("timm")
    net = timm.create_model("regnetx_002", num_classes=3)
    plain = copy.deepcopy(net)
    net = convert_sync_batchnorm(net, on_cuda=True)
    assert has_sync_batchnorm(net)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.eval()(images), plain.eval()(images))


def test_on_cuda_an_empty_part_in_16_bits_is_widened():
    norm = convert_sync_batchnorm(nn.BatchNorm2d(5), on_cuda=True).eval()
    assert norm(torch.zeros(0, 5, 2, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert norm(torch.zeros(1, 5, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
