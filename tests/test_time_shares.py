"""Where the time goes: the shares of a run under a clock that only what a test names moves, and what a run says of them."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from error_parts import assert_error
from hypothesis import given
from hypothesis import strategies as st
from processes import run_ranks, wait_until

from imgrec.config.compose import compose_config
from imgrec.config.instantiate import instantiate
from imgrec.config.schema import run_config
from imgrec.data.datamodule import build_data
from imgrec.data.in_memory import InMemoryImages
from imgrec.terminal import Terminal
from imgrec.train import fit
from imgrec.training.callbacks.console import HEADER, EpochLines, epoch_line
from imgrec.training.callbacks.profile import RECORDED
from imgrec.training.held_back import HELD_BACK, LEAST_S, data_setting, held_back
from imgrec.training.module import Classifier
from imgrec.training.timeline import PARTS, CudaClock, HostClock, Timeline, share_column, share_columns


class FakeClock:
    """Stands still but for `now += seconds`; the device is `behind` stamps, until it is waited for."""

    def __init__(self, behind: int = 0) -> None:
        self.now, self.behind, self.last = 0, behind, 0
        self._waited = False

    def stamp(self) -> tuple[int, int]:
        self.last += 1
        self._waited = False
        return self.last, self.now

    def seconds(self, begin: tuple[int, int], end: tuple[int, int]) -> int | None:
        return end[1] - begin[1] if self._waited or end[0] <= self.last - self.behind else None

    def wait(self) -> None:
        self._waited = True


@given(st.lists(st.tuples(st.sampled_from(PARTS), st.integers(0, 1000))), st.integers(0, 5))
def test_the_seconds_of_the_parts_are_those_in_them_and_sum_to_the_whole_however_late_the_device_is(spans, behind):
    clock = FakeClock(behind)
    timeline = Timeline(clock)
    expected: Counter[str] = Counter()
    for part, seconds in spans:
        timeline.enter(part)
        clock.now += seconds
        expected[part] += seconds
    taken = timeline.take()
    assert taken == {part: expected[part] for part in PARTS}
    assert sum(taken.values()) == clock.now
    assert timeline.take() == dict.fromkeys(PARTS, 0)
    assert sum(share_columns(taken).values()) == pytest.approx(1 if clock.now else 0)


def test_a_part_within_another_is_not_counted_twice_and_what_is_cleared_is_not_counted():
    timeline = Timeline(clock := FakeClock())
    clock.now += 100
    timeline.enter("validation")
    clock.now += 7
    timeline.clear()
    clock.now += 1
    with timeline.during("checkpoint"):
        clock.now += 2
    clock.now += 4
    assert {part: seconds for part, seconds in timeline.take().items() if seconds} == {"validation": 5, "checkpoint": 2}


def test_the_clock_of_a_device_waits_only_where_the_seconds_are_taken(monkeypatch):
    """Events that are reached one by one, as the stream gets to them."""
    reached, waits = [], []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now["s"]

        def query(self) -> bool:
            return any(event is self for event in reached)

        def elapsed_time(self, end: "Event") -> float:
            assert end.query()
            return 1000 * (end.at - self.at)

    now = {"s": 0}
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: (waits.append(1), reached.extend(m[1] for m in timeline._marks)))
    timeline = Timeline(CudaClock())
    for part in ("compute", "optimizer", "data_wait"):
        timeline.enter(part)
        now["s"] += 3
    assert waits == []
    assert timeline.take() == dict.fromkeys(PARTS, 0) | {"compute": 3, "optimizer": 3, "data_wait": 3}
    assert waits == [1]


@pytest.fixture
def moved(monkeypatch) -> Callable[[Any, str, int], None]:
    """moved(class, method, seconds): each call moves the clock of the run by that."""
    now = {"s": 0}
    monkeypatch.setattr(HostClock, "stamp", lambda self: now["s"])

    def move(where: Any, name: str, seconds: int) -> None:
        whole = getattr(where, name)

        def moving(*args: Any, **kwargs: Any) -> Any:
            now["s"] += seconds
            return whole(*args, **kwargs)

        monkeypatch.setattr(where, name, moving)

    return move


def rows_of(run) -> list[dict[str, str]]:
    with (Path(run.runs_dir) / run.name / run.id / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def shares_of(row: dict[str, str]) -> dict[str, float]:
    return {part: float(row[share_column(part)]) for part in PARTS}


SPENT = {"data_wait": 30, "copy": 2, "compute": 5, "optimizer": 3, "validation": 40, "checkpoint": 11, "other": 4}


def spend(moved) -> None:
    """SPENT at each batch, step, validation and save."""
    moved(InMemoryImages, "__getitem__", SPENT["data_wait"])
    moved(pl.strategies.SingleDeviceStrategy, "batch_to_device", SPENT["copy"])
    moved(Classifier, "training_step", SPENT["compute"])
    moved(pl.LightningModule, "configure_gradient_clipping", SPENT["optimizer"])
    moved(Classifier, "on_train_batch_end", SPENT["other"])
    moved(Classifier, "on_validation_epoch_end", SPENT["validation"])
    moved(pl.Trainer, "save_checkpoint", SPENT["checkpoint"])


def test_shares_of_each_epoch_are_what_was_spent_of_the_whole(small, moved):
    run = small("epochs=2", "id=1", "trainer.limit_train_batches=3", "trainer.save_every_steps=2", "callbacks.batch_norm=null")
    spend(moved)
    result = fit(run, quiet=True)
    rows, evaluated = rows_of(run), SPENT["data_wait"] + SPENT["copy"]
    in_validation = {"validation": SPENT["validation"] + evaluated}
    # Of the first epoch its first step is left out (callbacks.throughput.warm_up); the save of step 2 is before the third.
    step = {part: SPENT[part] for part in ("data_wait", "copy", "compute", "optimizer", "other")}
    first = {part: 2 * seconds for part, seconds in step.items()} | in_validation | {"checkpoint": SPENT["checkpoint"]}
    first["other"] += SPENT["other"]  # that of the first step, after its end
    # best.ckpt of the first epoch, last.ckpt at its end and at step 4.
    second = {part: 3 * seconds for part, seconds in step.items()} | in_validation
    saves = 1 + sum(row["best"] == "1" for row in rows[:1])
    for row, spent in zip(rows, (first, second | {"checkpoint": saves * SPENT["checkpoint"]}), strict=True):
        expected = {part: spent.get(part, 0) / sum(spent.values()) for part in PARTS}
        assert shares_of(row) == pytest.approx(expected), row["epoch"]
    images = 3 * 4
    stepping = sum(second[part] for part in step)
    assert float(rows[1]["images_per_second"]) == pytest.approx(images / stepping)
    weighted = {part: sum(shares_of(row)[part] * float(row["seconds"]) for row in rows) for part in PARTS}
    assert result["time_shares"] == pytest.approx({k: v / sum(weighted.values()) for k, v in weighted.items()}, abs=1e-4)
    assert json.loads((Path(run.runs_dir) / run.name / "1/result.json").read_text())["time_shares"] == result["time_shares"]


@pytest.mark.parametrize(
    ("where", "name", "words", "parts"),
    [
        (InMemoryImages, "__getitem__", [], ("waiting for images", "num_workers=")),
        (Classifier, "on_validation_epoch_end", [], ("validation", "a single batch")),
        (pl.Trainer, "save_checkpoint", ["trainer.save_every_steps=1"], ("saving", "trainer.save_every_steps=10")),
        pytest.param(pl.Trainer, "save_checkpoint", [], ("saving", "runs_dir=FOLDER"), marks=pytest.mark.slow),
        (pl.strategies.SingleDeviceStrategy, "batch_to_device", [], ("copying images", "data.image_size=8")),
    ],
    ids=["loader", "validation", "saves", "best", "copy"],
)  # fmt: skip
def test_what_holds_a_run_back_is_named_with_the_setting_to_change(small, moved, capsys, where, name, words, parts):
    run = small("epochs=2", "id=1", "callbacks.batch_norm=null", *words)
    moved(Classifier, "training_step", 1)
    moved(where, name, 100)
    result = fit(run)
    share = result["held_back"].partition("%")[0]
    assert_error(result["held_back"], f"{share}%", *parts)
    assert result["held_back"] in capsys.readouterr().out.splitlines()


def test_a_run_that_nothing_holds_back_says_nothing_nor_one_that_measures_nothing(small, moved, capsys):
    moved(Classifier, "training_step", 100)
    moved(InMemoryImages, "__getitem__", 1)
    result = fit(small("id=1"))
    assert result["held_back"] is None
    assert "of the training's time" not in capsys.readouterr().out
    result = fit(small("id=2", "callbacks.throughput=null"), quiet=True)
    assert (result["time_shares"], result["held_back"]) == ({}, None)


def test_the_line_of_an_epoch_has_the_share_of_waiting_and_fits_80_characters():
    shares = {"train/accuracy": 1.0, "val/accuracy": 1.0, "data_wait_share": 1.0}
    row = shares | {"train/loss": 123.4, "val/loss": 123.4, "lr": 1e-4, "images_per_second": 123456.0, "seconds": 3599.0}
    line = epoch_line(row | {"epoch": 999, "best": True}, 999)
    cells = ["999/999", "123.4000", "100.00%", "123.4000", "100.00%", "1.0e-04", "123,456", "100%", "59:59", "best"]
    assert line.split() == cells
    assert len(line) == len(f"{HEADER} best") == 80


def test_at_the_share_of_the_limit_nothing_is_said():
    run: Any = SimpleNamespace(trainer=SimpleNamespace(limit_train_batches=1.0, limit_val_batches=1.0))
    loaders: Any = SimpleNamespace(evaluation_plan=lambda split: SimpleNamespace(steps_per_epoch=4))
    assert held_back({"validation": HELD_BACK}, 3600, run, loaders) is None
    assert held_back({"validation": HELD_BACK + 0.01}, 3600, run, loaders) is not None


def test_a_few_seconds_are_worth_no_setting():
    run: Any = SimpleNamespace(trainer=SimpleNamespace(save_every_steps=None))
    loaders: Any = None
    assert held_back({"checkpoint": 0.5}, 2 * LEAST_S - 0.1, run, loaders) is None
    assert held_back({"checkpoint": 0.5}, 2 * LEAST_S, run, loaders) is not None


def test_more_workers_are_named_only_where_cores_are_left():
    def said(workers: int, *overrides: str) -> str:
        data, _ = build_data(run_config(compose_config("train", ["data=imagefolder", *overrides])))
        loaders: Any = SimpleNamespace(workers=workers, cores=2, data=data)
        return data_setting(loaders)

    assert said(0) == said(1) == "Set num_workers=2."
    assert_error(said(2), "2 workers", "all cores", "data.cache=ram", "imgrec benchmark", "imgrec pack")
    assert "ram" not in said(2, "data.cache=ram")
    assert said(2, "data.decoder=pil") == "Set data.decoder=auto."


def test_the_epoch_that_fills_the_memory_with_images_is_not_blamed_for_reading_them():
    data, _ = build_data(run_config(compose_config("train", ["data=imagefolder", "data.cache=ram"])))
    loaders: Any = SimpleNamespace(workers=2, cores=2, data=data, bad_images=list, constant_images=list)
    said: list[str] = []
    history: Any = SimpleNamespace(rows=[])
    terminal: Any = SimpleNamespace(say=lambda line, style=None: said.append(line), bar=Terminal().bar)
    lines = EpochLines(data_wait=0.2, terminal=terminal, history=history)
    lines._said_images = {}
    trainer: Any = SimpleNamespace(max_epochs=2, datamodule=loaders)
    for epoch in (1, 2):
        history.rows.append({"epoch": epoch, "best": False, "data_wait_share": 0.5})
        lines.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert [line.split()[:4] for line in said] == [["1/2", *"---"], ["2/2", *"---"], ["The", "network", "waited", "50%"]]


@pytest.mark.slow
def test_the_wait_for_the_gradients_of_another_rank_is_communication(small, tmp_path):
    """Rank 1 computes no loss of the third step before rank 0 has entered the wait for it."""
    run = small("id=1", "trainer.devices=2", "trainer.strategy=ddp", "callbacks.batch_norm=null", "trainer.limit_train_batches=3")
    enter, training_step = Timeline.enter, Classifier.training_step

    def trained(rank: int) -> tuple[list[str], dict[str, Any]]:
        parts: list[str] = []

        def noted(self: Timeline, part: str) -> None:
            if (self.part, part, rank) == ("compute", "communication", 0):
                (tmp_path / f"waits {len([p for p in parts if p == 'optimizer'])}").touch()
            if part != "communication" or self.part == "compute":  # those at the step boundary are as it happens
                parts.append(part)
            enter(self, part)  # type: ignore[arg-type]

        def late(self: Classifier, *args: Any) -> Any:
            if rank == 1 and self.trainer.global_step == 2:  # before, DDP waits in its forward pass, where it makes its buckets
                wait_until((tmp_path / f"waits {self.trainer.global_step}").exists)
            return training_step(self, *args)

        Timeline.enter, Classifier.training_step = noted, late  # type: ignore[method-assign]
        return parts, fit(run, quiet=True)["last"]

    (parts, last), (others, same) = run_ranks(2, trained)
    step = ["data_wait", "copy", "other", "compute", "communication", "compute", "optimizer", "other"]
    for found in (parts, others):
        steps = [part for part, _ in groupby(part for part in found if part not in ("validation", "checkpoint"))]
        assert steps[steps.index("data_wait") :][: 2 * len(step)] == 2 * step
    shares = {part: last[share_column(part)] for part in PARTS}
    assert sum(shares.values()) == pytest.approx(1)
    assert {part: same[share_column(part)] for part in PARTS} == shares  # the mean over the ranks


def test_profile_writes_a_trace_and_a_table_of_its_steps_and_no_more(small, capfd):
    longer = ("data.train_samples=60", "trainer.limit_train_batches=10")
    run = small("id=1", "profile=true", *longer)
    result = fit(run)
    folder = Path(run.runs_dir) / run.name / "1/profile"
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    backward = {event["name"] for event in events}
    convolutions = [event for event in events if event["name"] == "aten::conv2d"]
    assert len(convolutions) == RECORDED * sum(isinstance(m, torch.nn.Conv2d) for m in instantiate(run.model).modules())
    assert "ConvolutionBackward0" in backward
    assert "convolution" in (folder / "operators.txt").read_text()
    assert f"profile of {RECORDED} steps in {folder}" in capfd.readouterr().out
    plain = fit(small("id=2", *longer), quiet=True)
    assert plain["weights"]["last"]["sha256"] == result["weights"]["last"]["sha256"]


def test_a_run_too_short_for_a_profile_says_so(small, capsys):
    run = small("id=1", "profile=true")
    fit(run)
    assert_error(next(line for line in capsys.readouterr().out.splitlines() if "profile" in line), "profile=true", "4 steps")
    assert not (Path(run.runs_dir) / run.name / "1/profile").exists()


@pytest.mark.parametrize(
    ("trained", "limit", "batches", "advice"),
    [
        (1.0, 1.0, 8, "trainer.limit_val_batches=0.5"),
        (1.0, 8, 8, "trainer.limit_val_batches=4"),
        (1.0, 8, 1, "a single batch"),
        (40, 8, 8, "without trainer.limit_train_batches=40"),
    ],
)
def test_a_long_validation_is_told_what_makes_it_shorter(trained, limit, batches, advice):
    run: Any = SimpleNamespace(trainer=SimpleNamespace(limit_train_batches=trained, limit_val_batches=limit))
    loaders: Any = SimpleNamespace(evaluation_plan=lambda split: SimpleNamespace(steps_per_epoch=batches))
    said = held_back({"validation": 0.5}, 3600, run, loaders)
    assert said is not None
    assert advice in said
