"""imgrec.benchmark: what it recommends of given speeds, and that it measures what it names."""

import math
import shlex
from itertools import count
from pathlib import Path

import pytest
from error_parts import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from processes import torchrun_variables
from small_run import SMALL

from imgrec import cli
from imgrec.benchmark import ENOUGH, Speeds, Step, best_step, fewest_workers, limit_sentence, loader_speed, next_settings
from imgrec.config.load import load_config
from imgrec.data.datamodule import build_data

GIVEN, OTHER, LARGER = Step(64, "32"), Step(64, "bf16-mixed"), Step(128, "32")
RATES = st.floats(1, 1e5)


@given(st.dictionaries(st.integers(0, 16), RATES, min_size=1), RATES)
def test_the_fewest_workers_that_are_enough_or_those_that_give_most(loader, step):
    found = fewest_workers(loader, step)
    enough = {workers for workers, speed in loader.items() if speed >= ENOUGH * step}
    assert found == min(enough) if enough else loader[found] == max(loader.values())


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ((100, 100, 100), Step(64, "32")),
        ((100, 104, 109), Step(64, "32")),  # too little for a change
        ((100, 150, 109), Step(64, "bf16-mixed")),
        ((100, 104, 120), Step(128, "32")),
        ((100, 150, 120), Step(128, "bf16-mixed")),
        ((100, 50, 60), Step(64, "32")),
    ],
)
def test_a_precision_and_a_batch_are_recommended_where_they_are_enough_faster(speeds, expected):
    assert best_step(dict(zip((GIVEN, OTHER, LARGER), speeds, strict=True)), GIVEN) == expected


def test_of_the_workers_those_with_which_both_were_fastest_are_recommended():
    speeds = Speeds({1: 90.0, 2: 300.0}, {GIVEN: 100.0, OTHER: 80.0}, {1: 70.0, 2: 65.0})
    assert next_settings(speeds, GIVEN) == ["num_workers=1", "batch_size=64", "trainer.precision=32"]
    assert limit_sentence(speeds, GIVEN).startswith("The step is the limit: the loader gives up to 3.0 times")
    assert limit_sentence(Speeds({1: 50.0}, {GIVEN: 100.0}, {}), GIVEN).startswith(
        "The loader is the limit: it gives up to 0.5 times"
    )


def test_the_speed_of_the_loader_is_its_images_by_the_time_without_the_first_batch(tmp_path, monkeypatch):
    run = load_config("train", [*SMALL, "trainer.limit_train_batches=1.0"])
    data, augment = build_data(run)
    ticks = count()
    monkeypatch.setattr("imgrec.benchmark.time.perf_counter", lambda: float(next(ticks)))  # a second a batch
    batches = math.ceil(int(data.counts("train").sum()) / 4)
    images = int(data.counts("train").sum())
    seconds = batches - 1.0  # all of the first epoch but its first batch
    assert loader_speed(run, data, augment, seconds) == pytest.approx((images - 4) / seconds)


def test_command_prints_the_speeds_and_a_training_that_can_be_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word for word in SMALL if not word.startswith("batch_size")]
    assert cli.main(["benchmark", *words, "batch_size=4", "seconds=0.1"]) == 0
    said = capsys.readouterr().out.splitlines()
    parts = [line.split()[0] for line in said if line.split()[0] in ("loader", "step", "both")]
    assert parts.count("step") == 3
    assert {"loader", "both"} <= set(parts)
    typed = shlex.split(said[-1])
    assert typed[:2] == ["imgrec", "train"]
    assert typed[2:-3] == words[: words.index("num_workers=0")] + words[words.index("num_workers=0") + 1 :]
    run = load_config("train", typed[2:])
    assert run.data.to_node() == load_config("train", SMALL).data.to_node()
    assert list(Path().iterdir()) == []


def test_several_processes_are_refused(monkeypatch, capsys):
    for name, value in torchrun_variables(0, 2, port=1).items():
        monkeypatch.setenv(name, value)
    assert cli.main(["benchmark", *SMALL]) == 2
    assert_refused(capsys.readouterr().err, "benchmark", "one process", 2, "imgrec benchmark")
