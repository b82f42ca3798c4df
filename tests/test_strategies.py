"""Several processes train what one trains: DDP and FSDP, frozen layers, synchronised norms, 16 bits; and their checkpoints are one format."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from imgrec import config
from imgrec.config.options import conf_dir
from imgrec.distributed import signals
from imgrec.distributed.sharding import blocks, gather_whole, shard
from imgrec.errors import ConfigError, Stopped
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.models.resnet import resnet
from imgrec.train import fit
from imgrec.training.module import Classifier
from imgrec.training.optimizer import build_optimizer

# No dropout: every process would draw its own.
RUN = (
    "data=fake",
    "data.num_classes=3",
    "data.image_size=16",
    "data.train_samples=27",
    "data.test_samples=5",
    "data.val_share=0.2",
    "augment=light",
    "augment.mixup=0.4",
    "optim=momentum",
    "optim.lr=0.05",
    "scheduler=cosine",
    "epochs=2",
    "batch_size=6",
    "num_workers=0",
    "logger=none",
    "name=r",
    "trainer.accelerator=cpu",
    "trainer.log_every_steps=1",
)
PLAIN = ("model=lenet",)
NORMED = ("model=simple_cnn", "model.widths=[4,8]", "model.dense=8", "model.dense_dropout=0.0")


def run(folder: Path, id: str, *words: str, processes: int = 2, stop_at: int | None = None) -> dict[str, Any]:
    """Train on that many processes; gives what the last checkpoint holds, and the result. Nothing where it is stopped, before step `stop_at`."""
    settings = config.load("train", [*RUN, f"runs_dir={folder}", f"id={id}", f"trainer.devices={processes}", *words])

    def work(rank: int) -> dict[str, Any]:
        if stop_at is None:
            return fit(settings, quiet=True)
        step = Classifier.training_step

        def asked_at(self: Classifier, *batch: Any) -> Any:
            if rank == 1 and self.trainer.global_step + 3 == stop_at:
                signals.request_stop("the test")
            return step(self, *batch)

        Classifier.training_step = asked_at  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            fit(settings, quiet=True)
        return {}

    results = run_ranks(processes, work)
    if stop_at is not None:
        return {}
    last = read_checkpoint(folder / f"r/{id}/checkpoints/last.ckpt")
    return last | {"result": results[0]}


def same_bits(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def same(found: dict[str, Any], expected: dict[str, Any], rounding: float = 1e-4) -> None:
    """Equal to rounding: weights, optimizer state, curves; and equal, what was recognised."""
    assert list(found["state_dict"]) == list(expected["state_dict"])
    pairs = [(key, found["state_dict"][key], value) for key, value in expected["state_dict"].items()]
    (one,), (other,) = found["optimizer_states"], expected["optimizer_states"]
    for i, state in other["state"].items():
        pairs += [(f"optimizer {i} {key}", one["state"][i][key], value) for key, value in state.items() if value is not None]
    for key, value, right in pairs:
        assert type(value) is torch.Tensor
        assert value.shape == right.shape
        assert (value - right).float().norm() <= rounding * right.float().norm() + 1e-7, key
    assert found["result"]["test"]["confusion"] == expected["result"]["test"]["confusion"]
    for figure in ("train/loss", "val/loss", "val/accuracy"):
        assert found["result"]["last"][figure] == pytest.approx(expected["result"]["last"][figure], rel=rounding)


@pytest.mark.slow
def test_ddp_and_fsdp_train_what_one_process_trains(tmp_path: Path):
    alone = run(tmp_path, "alone", *PLAIN, processes=1)
    same(run(tmp_path, "ddp", *PLAIN, "trainer.strategy=ddp"), alone)
    same(run(tmp_path, "fsdp", *PLAIN, "trainer=fsdp"), alone)


@pytest.mark.slow
def test_frozen_layers_learn_from_their_epoch_on(tmp_path: Path):
    """The backbone stays for an epoch and then learns; DDP and FSDP must notice both."""
    start = run(tmp_path, "start", *PLAIN, processes=1)
    words = (*PLAIN, f"weights={tmp_path}/r/start", "finetune.freeze_epochs=1", "epochs=3")
    alone = run(tmp_path, "alone", *words, processes=1)
    first = next(key for key in start["state_dict"] if key.startswith("net."))
    assert not torch.equal(alone["state_dict"][first], start["state_dict"][first])
    for strategy in ("ddp", "fsdp"):
        same(run(tmp_path, strategy, *words, f"trainer.strategy={strategy}"), alone)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_either_strategy(tmp_path: Path):
    """Stopped in an epoch; the same processes then end bit for bit where the unbroken run does, others to rounding. With the average, which fsdp shards too."""
    words = (*NORMED, "trainer.sync_batchnorm=true", "callbacks.ema.decay=0.9", "trainer.gradient_clip=0.5", "optim=adamw")
    unbroken = run(tmp_path, "unbroken", *words, "trainer=fsdp")
    assert run(tmp_path, "stopped", *words, "trainer=fsdp", stop_at=6) == {}
    stopped, kept = tmp_path / "r/stopped", tmp_path / "kept"
    shutil.copytree(stopped, kept)
    resumed = run(tmp_path, "stopped", *words, "trainer=fsdp")
    for key in ("state_dict", "current_model_state"):
        same_bits(resumed[key], unbroken[key])
    same_bits(resumed["optimizer_states"][0]["state"], unbroken["optimizer_states"][0]["state"])
    for strategy, processes in (("ddp", 2), ("fsdp", 1)):
        shutil.rmtree(stopped)
        shutil.copytree(kept, stopped)
        same(run(tmp_path, "stopped", *words, f"trainer.strategy={strategy}", processes=processes), unbroken, rounding=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_synchronised_norms_see_the_global_batch(tmp_path: Path, strategy: str):
    alone = run(tmp_path, "alone", *NORMED, "trainer.sync_batchnorm=true", processes=1)
    same(run(tmp_path, strategy, *NORMED, "trainer.sync_batchnorm=true", f"trainer.strategy={strategy}"), alone)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_fsdp_computes_what_ddp_does(tmp_path: Path, precision: str):
    """With norms of each process's own, clipping, accumulation and an average; in 16 bits, to their rounding."""
    words = (
        *NORMED,
        f"trainer.precision={precision}",
        "trainer.gradient_clip=0.1",
        "callbacks.ema.decay=0.5",
        "max_device_batch=2",
        "augment.mixup=0",
    )
    ddp, fsdp = (run(tmp_path, strategy, *words, f"trainer.strategy={strategy}") for strategy in ("ddp", "fsdp"))
    same(fsdp, ddp, rounding=1e-4 if precision == "32" else 0.02)


@pytest.mark.slow
def test_every_optimizer_takes_parts_of_the_weights():
    names = [file.stem for file in (conf_dir() / "optim").glob("*.yaml") if file.stem != "gd"]
    nodes = {name: dict(config.load("train", [f"optim={name}", "data=fake"]).optim) for name in names}

    def steps(net: nn.Module, node: dict[str, Any], images: torch.Tensor) -> dict[str, torch.Tensor]:
        optimizer = build_optimizer(node, net, batch=8, decay_on="weights", layer_decay=1, layers=None)
        for _ in range(3):
            optimizer.zero_grad()
            net(images).square().mean().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.05)
            optimizer.step()
        return gather_whole(net.state_dict(), keep=True)

    def work(rank: int) -> dict[str, float]:
        mesh, found = init_device_mesh("cpu", (2,)), {}
        for name, node in nodes.items():
            torch.manual_seed(0)
            net = small_net()
            images, plain = torch.randn(8, 2, 8, 8), copy.deepcopy(net)
            shard(net, mesh)
            if "fused" in node:
                node["fused"] = False
            pairs = zip(steps(net, node, images.chunk(2)[rank]).values(), steps(plain, node, images).values(), strict=True)
            found[name] = max(float((one - other).norm() / other.norm()) for one, other in pairs)
        return found

    off = run_ranks(2, work, group=True)[0]
    assert off.pop("muon") < 2**-8  # it computes in bfloat16
    assert max(off.values()) < 1e-6, off


def small_net() -> nn.Module:
    dense = nn.Sequential(nn.Linear(180, 7), nn.ReLU())
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), dense, nn.Linear(7, 3))


def test_blocks_are_what_the_containers_hold():
    net = small_net()
    assert list(blocks(net)) == [net[0], net[3][0], net[4]]
    net = resnet(num_classes=3, channels=3, depth=18, stem="small", zero_init_residual=False)
    assert {type(block).__name__ for block in blocks(net)} == {"BasicBlock"}


def test_a_part_of_each_weight_is_all_a_process_holds():
    def work(rank: int) -> tuple[int, int]:
        net = small_net()
        shard(net, init_device_mesh("cpu", (3,)))
        net(torch.zeros(0, 2, 8, 8)).sum().backward()
        return sum(p.to_local().numel() for p in net.parameters()), sum(p.grad.to_local().numel() for p in net.parameters())

    held = run_ranks(3, work, group=True)
    assert sum(weights for weights, _ in held) == sum(p.numel() for p in small_net().parameters())
    assert all(weights == gradients for weights, gradients in held)


def test_penalties_are_refused_with_fsdp():
    with pytest.raises(ConfigError, match=r"loss\.l2=0\.1 .* Set optim\.weight_decay instead, or"):
        config.load("train", ["trainer=fsdp", "loss.l2=0.1", "data=fake"])


def test_synchronising_needs_norms(small):
    with pytest.raises(ConfigError, match="LeNet has no batch norm"):
        fit(small("trainer.sync_batchnorm=true"), quiet=True)
