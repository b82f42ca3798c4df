"""imgrec.benchmark: what it recommends of given speeds, and that it measures what it names."""

import math
import shlex
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from error_parts import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from image_files import picture
from processes import torchrun_variables
from small_run import SMALL
from test_data_folder import folder, make

from imgrec import benchmark, cli
from imgrec.benchmark import (
    ENOUGH,
    Memory,
    Speeds,
    Step,
    best_step,
    fewest_workers,
    limit_sentence,
    loader_speed,
    memory_sentence,
    next_settings,
    pack_command,
)
from imgrec.config.load import load_config
from imgrec.data import decoded
from imgrec.data.batch import Request
from imgrec.data.datamodule import build_data
from imgrec.errors import DataError
from imgrec.terminal import Terminal
from imgrec.training import step_speed

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


@given(st.dictionaries(st.integers(0, 4), RATES, min_size=1), RATES, st.integers(0, 4), st.booleans())
def test_images_in_memory_are_recommended_where_they_fit_and_the_training_is_enough_faster(both, cached, workers, fits):
    speeds = Speeds({1: 90.0}, {GIVEN: 100.0}, both)
    memory = Memory(3 * 10**9, 4 * 10**9, workers, 80.0, cached) if fits else Memory(5 * 10**9, 4 * 10**9)
    pays = fits and cached >= 1.1 * max(both.values())
    settings = next_settings(speeds, GIVEN, memory)
    assert settings[3:] == (["data.cache=ram"] if pays else [])
    assert settings[:3] == next_settings(speeds._replace(both={workers: 1.0}) if pays else speeds, GIVEN)
    said = memory_sentence(speeds, memory)
    assert said.startswith(f"data.cache=ram {'pays' if pays else 'does not pay' if fits else 'does not fit'}")
    assert ("3.0 GB" if fits else "5.0 GB") in said
    assert "4.0 GB" in said


@pytest.fixture
def photos(tmp_path) -> Path:
    """Images of several sizes, one of which cannot be read."""
    root = make(tmp_path / "photos", {"a": 9, "b": 8})
    for k, file in enumerate(sorted(root.glob("a/*.jpg"))):
        picture(k, 40 + k, 30 + 2 * k).save(file)
    (root / "b/003.jpg").write_bytes(b"no image")
    return root


def test_the_memory_that_images_need_is_that_of_their_pixels(photos):
    files = folder(photos, on_bad_image="skip", on_bad_image_eval="skip").split("train")
    pixels = []
    for index in range(len(files)):
        with suppress(DataError):
            pixels.append(files.decode(index).numel())
    assert benchmark.needed_memory(files, len(files)) == sum(pixels)
    assert benchmark.needed_memory(files, 100 * len(files)) == 100 * sum(pixels)


def test_few_images_in_memory_stand_for_all(photos, monkeypatch):
    files = folder(photos, on_bad_image="skip", on_bad_image_eval="skip").split("train")
    few = files.take(np.arange(0, len(files), 3))
    standing = benchmark.standing_for(files, few)
    rows = np.arange(len(few))
    expected = few[Request(0, rows, len(rows))].images
    monkeypatch.setattr(type(few), "decode", lambda *_: pytest.fail("a file was read"))
    for first in range(0, len(files) - len(few) + 1, len(few)):
        found = standing[Request(0, rows + first, len(rows))]
        assert torch.equal(found.images, expected)
        assert found.labels.tolist() == files.labels[rows + first].tolist()


@pytest.mark.parametrize(("image_size", "resize", "size"), [(224, "crop", 256), (112, "crop", 128), (64, "squash", 64)])
def test_images_that_do_not_fit_are_packed_as_the_training_needs_them(image_size, resize, size):
    words = [f"data.image_size={image_size}", f"data.resize={resize}"]
    data = load_config("train", ["data=imagefolder", "data.root=a b", *words]).data
    assert pack_command(data, ["a b", *words, "optim=sgd"]) == ["imgrec", "pack", "a b", *words, "out=DIR", f"size={size}"]
    assert pack_command(data, ["experiment=x"]) == ["imgrec", "pack", "FOLDER", "out=DIR", f"size={size}"]


@pytest.mark.slow  # five trainings each
@pytest.mark.parametrize("usable", [10**9, 10])
def test_the_command_measures_images_in_memory_where_the_loader_is_the_limit(photos, monkeypatch, capsys, usable):
    monkeypatch.setattr(benchmark, "ENOUGH", 1e9)
    monkeypatch.setattr(decoded, "usable_memory", lambda: usable)
    (photos / "b/003.jpg").unlink()
    words = [str(photos), "data.image_size=16", "model=lenet", "batch_size=4", "num_workers=1", "trainer.accelerator=cpu"]
    assert cli.main(["benchmark", *words, "seconds=0.1", "data.cache=ram"]) == 0
    said = capsys.readouterr().out
    cached = [line.split()[0] for line in said.splitlines() if "data.cache=ram  " in line]
    assert cached == (["loader", "both"] if usable > 10 else [])
    assert ("data.cache=ram does not fit" in said) == ("imgrec pack" in said) == (usable == 10)
    typed = shlex.split(said.splitlines()[-1])
    assert typed[2:6] == [*words[:3], "trainer.accelerator=cpu"]
    assert ("data.cache=ram" in typed) == ("data.cache=ram pays" in said)


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


@pytest.mark.parametrize(("batch", "batches"), [("4", [4, 4, 8]), ("auto", [2, 2])])
def test_no_larger_batch_is_tried_beside_one_that_was_looked_for(monkeypatch: pytest.MonkeyPatch, batch, batches):
    def choose(run, *_):
        return replace(run, batch_size=2 if run.batch_size == "auto" else run.batch_size), None

    monkeypatch.setattr(benchmark, "with_chosen_batch", choose)
    monkeypatch.setattr(benchmark, "loader_speed", lambda *_: 10.0)
    monkeypatch.setattr(step_speed, "train_speed", lambda *_, **__: 1.0)
    run = load_config("train", [*SMALL, f"batch_size={batch}"])
    speeds, _, _ = benchmark.measure(run, 1.0, lambda *_: None, Terminal(quiet=True))
    assert [step.batch for step in speeds.step] == batches
