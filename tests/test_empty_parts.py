"""Fewer samples than processes, in the last batch of training and in whole splits: what one process learns and counts, all do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks

from imgrec import config
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.train import fit

# 18 images to train on in batches of 8, so 2 in the last one; 3 to validate and 3 to test.
RUN = (
    "data=fake",
    "data.num_classes=3",
    "data.image_size=16",
    "data.train_samples=21",
    "data.val_share=0.14",
    "data.test_samples=3",
    "augment=light",
    "augment.cutmix=1.0",
    "sampling=sqrt",
    "optim=momentum",
    "optim.lr=0.05",
    "scheduler=cosine",
    "epochs=2",
    "batch_size=8",
    "num_workers=0",
    "logger=none",
    "name=r",
    "trainer.accelerator=cpu",
    "trainer.log_every_steps=1",
)
NORMED = ("model=resnet", "model.depth=20", "model.stem=small", "optim.lr=0.005")


def run(folder: Path, processes: int, *words: str) -> dict[str, Any]:
    settings = config.load("train", [*RUN, f"runs_dir={folder}", f"id=on{processes}", f"trainer.devices={processes}", *words])

    result = run_ranks(processes, lambda rank: fit(settings, quiet=True))[0]
    return read_checkpoint(folder / f"r/on{processes}/checkpoints/last.ckpt") | {"result": result}


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("model=lenet", "trainer.strategy=ddp", "loss.l2=0.001"),
        (*NORMED, "trainer.strategy=ddp", "trainer.sync_batchnorm=true"),
        ("model=lenet", "trainer.strategy=fsdp"),
        (*NORMED, "trainer.strategy=fsdp", "trainer.sync_batchnorm=true"),
    ],
    ids=["ddp", "synchronised norms", "fsdp", "fsdp with synchronised norms"],
)
def test_processes_without_samples_change_nothing(tmp_path: Path, words: tuple[str, ...]):
    alone, four = run(tmp_path, 1, *words), run(tmp_path, 4, *words)
    # 1e-4: batch norm over two images enlarges the rounding of sums in another order.
    for key, value in alone["state_dict"].items():
        torch.testing.assert_close(four["state_dict"][key], value, rtol=1e-3, atol=1e-4, msg=lambda text, at=key: f"{at}: {text}")
    assert alone["result"]["test"]["count"] == four["result"]["test"]["count"] == 3
    assert alone["result"]["test"]["confusion"] == four["result"]["test"]["confusion"]
    for figure in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        assert four["result"]["last"][figure] == pytest.approx(alone["result"]["last"][figure], rel=1e-4), figure


@pytest.mark.slow
def test_plain_batch_norm_stays_finite(tmp_path: Path):
    found = run(tmp_path, 4, *NORMED, "trainer.strategy=ddp")
    assert all(value.isfinite().all() for value in found["state_dict"].values())
    seen = {value.item() for key, value in found["state_dict"].items() if key.endswith("num_batches_tracked")}
    assert seen == {2 * 3}, "as many batches as the first process had, which is never without samples"
