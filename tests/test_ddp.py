"""Runs on several gloo processes equal the run on one: the same batches, weights and figures, for sizes that do not divide."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from marks import slow_but
from processes import run_ranks
from torch.testing import assert_close

from imgrec.config.schema import RunConfig
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.train import fit

# Two batches, the second of 7; 6 validation images, so that two of eight processes have none; 13 test images, which nothing divides.
KEYS = (
    "data.num_classes=6",
    "data.image_size=12",
    "data.train_samples=61",
    "data.val_share=0.1",
    "data.test_samples=13",
    "batch_size=48",
    "epochs=2",
    "optim=momentum",
    "augment=affine",
    "trainer.devices=auto",
    "trainer.limit_train_batches=1.0",
    "trainer.limit_val_batches=1.0",
    "trainer.limit_test_batches=1.0",
)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same(found: Any, expected: Any, key: str = "") -> None:
    """Equal, sums of floats to rounding; speeds and times aside."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), key
        for name, value in expected.items():
            assert_same(found[name], value, f"{key}.{name}")
    elif "loss" in key or "brier" in key:
        assert found == pytest.approx(expected, rel=1e-5), key
    elif not key.endswith(("second", "seconds", "share")):
        assert found == expected, key


@pytest.mark.parametrize("size", slow_but(3, among=[2, 3, 8]))
def test_figures_weights_and_logs_are_those_of_one_process(small: Callable[..., RunConfig], size: int) -> None:
    torch.set_num_threads(1)
    one = small(*KEYS, "id=1")
    expected = fit(one, quiet=True)
    place = Path(one.runs_dir) / one.name
    assert expected["test"]["count"] == 13
    run = small(*KEYS, f"id={size}")
    every = run_ranks(size, lambda rank: fit(run, quiet=True))
    for found in every:  # each process has them
        for which in ("best", "last", "test") if found is every[0] else ("test",):
            assert_same(found[which], expected[which], which)
    weights, alone = (read_checkpoint(place / id / "checkpoints" / "best.ckpt")["state_dict"] for id in (str(size), "1"))
    assert_close(weights, alone, rtol=1e-4, atol=1e-6)
    several, single = (pq.read_table(place / id / "predictions.parquet").to_pydict() for id in (str(size), "1"))
    assert several["index"] == single["index"] == list(range(13))
    for column in ("true", "predicted"):
        assert several[column] == single[column]
    assert_close(several["probabilities"], single["probabilities"], rtol=1e-3, atol=1e-4)
    assert len((place / str(size) / "errors.csv").read_text().splitlines()) - 1 == 13 - round(13 * found["test"]["accuracy"])
    assert [row["epoch"] for row in rows(place / str(size))] == ["1", "2"]
    log = (place / str(size) / "log.txt").read_text()
    assert log.count("\n    1/2 ") == log.count("\n    2/2 ") == log.count("test accuracy") == 1
    assert f"global batch 48 = {size} devices x {48 // size} x 1" in log
    assert sorted(path.name for path in place.iterdir()) == ["1", str(size)]
