"""Several processes train what one trains: DDP and FSDP, frozen layers, synchronised norms, 16 bits; and their checkpoints are one format."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import together

from imgrec import config
from imgrec.checkpoint import read
from imgrec.train import train

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


def run(folder: Path, id: str, *words: str, processes: int = 2) -> dict[str, Any]:
    """Train on that many processes; gives what the last checkpoint holds, and the result."""
    settings = config.load("train", [*RUN, f"runs_dir={folder}", f"id={id}", f"trainer.devices={processes}", *words])

    def work(rank: int) -> dict[str, Any]:
        if processes > 1:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes), GROUP_RANK="0"
            )
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1", TORCHELASTIC_RUN_ID="test")
        return train(settings, quiet=True)

    results = together(processes, work)
    last = read(folder / f"r/{id}/checkpoints/last.ckpt")
    return last | {"result": results[0]}


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


def test_ddp_and_fsdp_train_what_one_process_trains(tmp_path: Path):
    alone = run(tmp_path, "alone", *PLAIN, processes=1)
    same(run(tmp_path, "ddp", *PLAIN, "trainer.strategy=ddp"), alone)
    same(run(tmp_path, "fsdp", *PLAIN, "trainer=fsdp"), alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_synchronised_norms_see_the_global_batch(tmp_path: Path, strategy: str):
    alone = run(tmp_path, "alone", *NORMED, "trainer.sync_batchnorm=true", processes=1)
    same(run(tmp_path, strategy, *NORMED, "trainer.sync_batchnorm=true", f"trainer.strategy={strategy}"), alone)
