"""Several ranks, and one rank that is connected by NCCL, train on GPUs what one process trains; synchronised batch norm against torch's."""

import copy
from pathlib import Path

import pytest
import torch
from gpu_run import everything, fresh_results
from test_sync_batchnorm import parts, step
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from imgrec.distributed.sharding import gather_whole, is_sharded, shard
from imgrec.distributed.sync_batchnorm import convert_sync_batchnorm
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.models.resnet import resnet
from imgrec.train import fit
from imgrec.training.strategies import DDP, FSDP

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
# Equal over any number of ranks: no dropout, which each draws for itself, and batch norm over all of them.
SAME = (
    "model.dense_dropout=0",
    "callbacks.ema.decay=0",
    "augment.cutmix=0",
    "batch_size=8",
    "max_device_batch=1024",
    "callbacks.batch_norm=null",
    "logger=none",
)
SYNCED = ("trainer.sync_batchnorm=true",)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read_checkpoint(folder / "r/a/checkpoints/last.ckpt")["state_dict"]
    return state


def train(rank: int, folder: Path, device: str, words: tuple[str, ...]) -> list[float]:
    torch.backends.cudnn.allow_tf32 = False  # whether a convolution uses it depends on the size of the batch
    run = everything(folder, device, *SAME, "trainer.devices=auto", *words)
    result = fit(run, quiet=True)
    return [result["last"]["train/loss"], result["last"]["val/loss"]]


def train_with_strategy(rank: int, folder: Path, device: str, words: tuple[str, ...], strategy: str) -> list[float]:
    """One rank with the strategy of several."""
    from imgrec.training import trainer

    trainer.make_strategy = lambda name, world_size: FSDP() if strategy == "fsdp" else DDP(gradient_as_bucket_view=True)  # type: ignore[assignment]
    return train(rank, folder, device, ("trainer.devices=1", f"trainer.strategy={strategy}", *words))


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_rank_connected_by_nccl_trains_what_a_plain_process_does(
    tmp_path: Path, device: str, strategy: str, precision: str
) -> None:
    words = (f"trainer.precision={precision}", "trainer.deterministic=true", "trainer.devices=1")
    words += ("trainer.channels_last=false", "optim.fused=false") if strategy == "fsdp" else ()  # as FSDP has them
    plain = fresh_results(train, tmp_path / "plain", device, words)
    wrapped = fresh_results(train_with_strategy, tmp_path / "one", device, words, strategy, backend=BACKENDS[device])
    assert wrapped == plain
    found, expected = weights(tmp_path / "one"), weights(tmp_path / "plain")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_on_one_device_train_what_one_does(tmp_path: Path, device: str, strategy: str) -> None:
    if (device, strategy) == ("cuda", "fsdp"):
        pytest.skip(
            "gloo cannot gather shards of CUDA memory (pytorch/pytorch#152645: it crashes), and NCCL wants a GPU for each rank"
        )
    one = fresh_results(train, tmp_path / "one", device, ("trainer.devices=1", "trainer.deterministic=true"))
    words = (f"trainer.strategy={strategy}", "trainer.deterministic=true", *SYNCED)
    two = fresh_results(train, tmp_path / "two", device, words, size=2, backend="gloo")
    assert two[0] == two[1]
    assert two[0] == pytest.approx(one[0], rel=1e-3)
    found, expected = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=5e-3, atol=5e-3, msg=lambda text, name=name: f"{name}: {text}")


def sharded_step(rank: int, device: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The gradients of a network, whole and sharded over the ranks, of the same images."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    net = resnet(num_classes=5, channels=3, depth=20, stem="small", zero_init_residual=False).to(device)
    images = torch.randn(8, 3, 16, 16).to(device)
    other = copy.deepcopy(net)
    shard(other, init_device_mesh(device, (distributed.get_world_size(),)))
    assert is_sharded(other)
    for each in (net, other):
        each(images).square().mean().backward()
    grads = gather_whole([parameter.grad for parameter in other.parameters()], keep=True)
    return [parameter.grad.cpu() for parameter in net.parameters() if parameter.grad is not None], grads


def test_a_sharded_network_has_the_gradients_of_the_whole_one(device: str) -> None:
    ((expected, found),) = fresh_results(sharded_step, device, backend=BACKENDS[device])
    assert len(found) == len(expected) > 20
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def synced_step(rank: int, device: str, counts: list[int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    norm = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(5)), on_cuda=device == "cuda").to(device, dtype)
    assert isinstance(norm[0], nn.SyncBatchNorm) == (device == "cuda")  # type: ignore[index]
    found = step(norm, parts((5, 4, 3), counts, dtype)[rank].to(device))
    return {name: value.cpu() for name, value in found.items()}


@pytest.mark.parametrize("counts", [[3, 3], [4, 1]], ids=str)
def test_synchronised_batch_norm_is_that_of_the_whole_batch(device: str, counts: list[int]) -> None:
    torch.manual_seed(0)
    whole = torch.cat(parts((5, 4, 3), counts, torch.float32))
    expected = step(nn.Sequential(nn.BatchNorm2d(5)), whole)
    ranks = fresh_results(synced_step, device, counts, torch.float32, size=2, backend="gloo")
    for name, value in expected.items():
        each = [found[name] for found in ranks]
        # Parts of the batch stand one after the other; the gradients of the weights are summed, as a strategy does.
        parts_of = {"out": torch.cat, "grad": torch.cat, "d0.weight": sum, "d0.bias": sum}
        united = parts_of[name](each) if name in parts_of else each[0]
        torch.testing.assert_close(united, value, rtol=2e-4, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
