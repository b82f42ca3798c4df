"""A pruned run ends after the epoch that its thresholds say, resumed or not, on any number of processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from marks import slow_but
from resumed_runs import assert_same, finish_run, kill_run, load_run

from imgrec.config.schema import RunConfig
from imgrec.train import fit
from imgrec.training.callbacks.early_stopping import Pruning
from imgrec.training.callbacks.history import BestCheckpoint


@pytest.mark.parametrize(
    ("monitor", "thresholds", "epochs"),
    [
        ("val/accuracy", [0.0, 1.1, 0.0], 2),
        pytest.param("val/accuracy", [0.0, 0.0, 0.0], 4, marks=pytest.mark.slow),
        pytest.param("val/accuracy", [1.1], 1, marks=pytest.mark.slow),
        pytest.param("val/loss", [1e9, 1e9, 0.0], 3, marks=pytest.mark.slow),
        ("val/loss", [1e9], 4),
    ],
)
def test_a_run_ends_after_the_epoch_whose_threshold_it_misses(
    monitor: str, thresholds: list[float], epochs: int, small: Callable[..., RunConfig]
) -> None:
    result = fit(small("epochs=4", f"monitor={monitor}", f"trainer.pruning_thresholds={thresholds}"), quiet=True)
    assert result["last"]["epoch"] == epochs
    assert result["test"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("callback", slow_but(BestCheckpoint, among=[Pruning, BestCheckpoint]))  # before and after it was decided
def test_killed_when_it_is_pruned(callback: type, tmp_path: Path) -> None:
    arguments = ("callbacks.early_stopping.patience=0", "trainer.save_every_steps=2", "trainer.pruning_thresholds=[0.0,1.1]")
    unbroken = finish_run(load_run(tmp_path / "unbroken", *arguments))
    assert [row["epoch"] for row in unbroken["rows"]] == ["1", "2"]
    run = load_run(tmp_path / "killed", *arguments)
    kill_run(run, 2, callback, "on_train_epoch_end")
    assert_same(finish_run(run), unbroken)


@pytest.mark.slow
def test_two_processes_prune_as_one_does(small: Callable[..., RunConfig]) -> None:
    result = fit(small("epochs=4", "trainer.devices=2", "trainer.pruning_thresholds=[0.0,1.1,0.0]"), quiet=True)
    assert result["device"].startswith("2 x cpu")
    assert result["last"]["epoch"] == 2
