"""Memory that ends on a device: what a step takes there, and a run that goes on with half of the images at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_run import fresh_results, on
from small_run import SMALL

from imgrec import config
from imgrec.distributed.world import World
from imgrec.train import fit
from imgrec.training.batch_finder import make_probe, search_sizes

RESNET = (*SMALL, "data.image_size=64", "model=resnet18", "data.train_samples=2048", "trainer.limit_train_batches=1")


def test_a_larger_step_takes_more_memory(device: str) -> None:
    run = config.load("train", [*RESNET, *on(device), "callbacks.ema.decay=0.9"]).with_classes(3)
    probe = make_probe(run, "max_device_batch", ("a", "b", "c"), World(), lambda images: None)
    search = search_sizes(probe.ask, [16, 128], for_speed=False)
    probe.close()
    assert list(search.found) == [16, 128]
    assert search.found[128].memory > search.found[16].memory


@pytest.mark.gpu
def test_a_run_halves_its_batch_until_it_fits(tmp_path: Path) -> None:
    (choice,) = fresh_results(_train_in_little_memory, tmp_path)
    assert choice["max_device_batch"] in (512, 256, 128, 64, 32)
    assert "at once did not fit in the memory" in (tmp_path / "r/a/log.txt").read_text()


def _train_in_little_memory(rank: int, folder: Path) -> Any:
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / total)  # 1,024 images of 64x64 take 10 GB
    fit(config.load("train", [*RESNET, *on("cuda"), "batch_size=1024", f"runs_dir={folder}", "name=r", "id=a"]), quiet=True)
    return json.loads((folder / "r/a/batch.json").read_text())
