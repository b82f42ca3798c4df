"""batch_size=auto and max_device_batch=auto: what is chosen of what was measured, and that a run keeps it."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from error_parts import assert_error, raises_error
from hypothesis import given
from hypothesis import strategies as st
from processes import LIMIT_S, run_ranks
from small_run import SMALL

from imgrec import config
from imgrec.config.schema import RunConfig, run_config
from imgrec.distributed.world import World
from imgrec.errors import ConfigError, DataError
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.lr_find import next_command
from imgrec.terminal import Terminal
from imgrec.train import fit
from imgrec.training import batch_choice, batch_finder
from imgrec.training.batch_choice import BatchChoice, stored_choice, with_chosen_batch
from imgrec.training.batch_finder import (
    FIRST,
    GAIN,
    StepMeasure,
    StepProbe,
    doubled_sizes,
    halved_sizes,
    make_probe,
    search_sizes,
)
from imgrec.training.batch_probe import StandIn, measure_step
from imgrec.training.callbacks import ema
from imgrec.training.module import Classifier
from imgrec.training.stored_run import read_run
from imgrec.training.trainer import prepare_process

CLASSES = ("ant", "bee", "cat")
MIXED = ["max_device_batch=auto", "augment.mixup=0.4", "batch_size=64"]
Ask = Callable[[int], StepMeasure | None]


def small_run(*words: str) -> RunConfig:
    return config.load("train", [*SMALL, "callbacks.pictures=null", *words])


def images(count: int) -> StandIn:
    data = asdict(small_run().data)
    data.pop("own")
    return StandIn(count, CLASSES, **data)


def levelling(knee: float, room: int) -> Ask:
    """Steps that take the time of `knee` images at least, and a memory for `room` images."""
    return lambda size: StepMeasure(size / max(size, knee), size) if size <= room else None


@given(st.integers(1, 5000), st.floats(1, 5000), st.integers(1, 5000))
def test_the_fastest_is_the_smallest_size_near_the_best_that_fits(most: int, knee: float, room: int) -> None:
    sizes, ask = doubled_sizes(most), levelling(knee, room)
    search = search_sizes(ask, sizes, for_speed=True)
    chosen = search.fastest
    assert chosen <= min(room, most)
    assert chosen.bit_count() == 1
    best = min(max(size for size in [*sizes, *(1 << k for k in range(5))] if size <= min(room, most)), knee)
    assert GAIN * chosen >= best * (1 - 1e-9)  # images/s are in proportion to min(size, knee)
    smaller = chosen // 2
    assert not (smaller in search.found and GAIN * smaller >= min(best, knee))
    assert search.end in ("speed", "memory", "all")


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_largest_is_a_half_of_a_half_of_the_share_that_fits(share: int, room: int) -> None:
    search = search_sizes(levelling(1, room), sizes := halved_sizes(share), for_speed=False)
    chosen = max(search.found)
    assert chosen <= room
    if chosen >= sizes[0]:
        parts = -(-share // chosen)
        assert parts == 1 or -(-share // (parts // 2)) > room
        assert chosen == -(-share // parts)
    else:
        assert chosen > room // 2 or chosen > sizes[0] // 2 ** (1 + int(math.log2(sizes[0])))


def test_sizes_are_powers_of_two_or_parts_of_the_share() -> None:
    assert doubled_sizes(100) == [16, 32, 64]
    assert doubled_sizes(16) == [16]
    assert doubled_sizes(15) == [8]
    assert doubled_sizes(1) == [1]
    assert halved_sizes(256) == [16, 32, 64, 128, 256]
    assert halved_sizes(100) == [25, 50, 100]
    assert halved_sizes(7) == [7]


def test_what_was_measured_before_the_time_was_over_counts() -> None:
    def ask(size: int) -> StepMeasure:
        if size > FIRST:
            raise TimeoutError
        return StepMeasure(1.0, 1)

    search = search_sizes(ask, doubled_sizes(64), for_speed=True)
    assert (search.fastest, search.end, search.last) == (FIRST, "time", 2 * FIRST)


# The process

ANSWERS = """
import os, sys, time
sys.stdin.readline()
for line in sys.stdin:
    size = int(line)
    if size == 64: os.kill(os.getpid(), 9)
    if size == 7: time.sleep(600)
    print('null' if size == 32 else '{"error": "no such layer"}' if size == 5 else f"[{size}.5, 1000]", flush=True)
"""


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> StepProbe:
    def start(task: dict[str, object]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-S", "-c", ANSWERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(b"{}\n")
        return process

    monkeypatch.setattr(batch_finder, "_start", start)
    return StepProbe("batch_size", {}, lambda images: None, alone=True)


def test_answers_of_the_process(probe: StepProbe) -> None:
    assert probe.ask(16) == StepMeasure(16.5, 1000)
    assert probe.ask(32) is None
    assert probe.ask(64) is None  # killed, as where the system's memory ends
    assert probe.ask(8) == StepMeasure(8.5, 1000)  # by another one
    with raises_error(ConfigError, "batch_size=auto", "5 images", "no such layer", "batch_size=64"):
        probe.ask(5)
    probe._end = 0.0
    with pytest.raises(TimeoutError):
        probe.ask(7)
    probe.close()


def test_a_step_is_measured_with_what_the_run_has(monkeypatch: pytest.MonkeyPatch) -> None:
    averaged: list[object] = []
    monkeypatch.setattr(ema, "update_average", lambda averages, net, **_: averaged.append(net))
    run = small_run("callbacks.ema.decay=0.9", "augment.mixup=0.4", "loss.class_weights=balanced").with_classes(3)
    task = make_probe(run, "max_device_batch", CLASSES, World(), lambda images: None).task
    prepare_process(run)
    measured = measure_step(run_config(json.loads(json.dumps(task))["run"]), CLASSES, 8, 0.0)
    assert measured is not None
    assert measured.speed > 0
    assert measured.memory > 1e8  # torch alone has that
    assert averaged


def test_a_step_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Classifier, batch: object, batch_idx: int) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Classifier, "training_step", full)
    prepare_process(run := small_run().with_classes(3))
    assert measure_step(run, CLASSES, 8, 0.0) is None


@pytest.mark.slow
def test_the_process_refuses_what_leaves_no_headroom() -> None:
    run = config.load("train", ["data=fake", "data.image_size=64", "model=resnet18", *SMALL[-5:]]).with_classes(3)
    probe = make_probe(run, "max_device_batch", CLASSES, World(), lambda images: None)
    probe.task["memory"] = 400 * 2**20
    search = search_sizes(probe.ask, [16, 1024], for_speed=False)
    probe.close()
    assert list(search.found) == [16]
    assert (search.end, search.last) == ("memory", 1024)


@pytest.mark.slow
def test_a_process_whose_parent_was_killed_while_it_started_measures_nothing() -> None:
    task = make_probe(small_run().with_classes(3), "max_device_batch", CLASSES, World(), lambda images: None).task
    told = f"{json.dumps(task)}\n8\n"
    for parent, answers in ((os.getpid(), 1), (1, 0)):
        command = [sys.executable, "-m", "imgrec.training.batch_probe", str(parent)]
        ended = subprocess.run(command, input=told, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        assert len(ended.stdout.splitlines()) == answers


# The run


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Ask], None]:
    """measured(ask) stands for the process."""

    class Stand:
        def close(self) -> None:
            pass

    def use(ask: Ask) -> None:
        stand = Stand()
        stand.ask = ask  # type: ignore[attr-defined]
        monkeypatch.setattr(batch_choice, "make_probe", lambda *_: stand)

    return use


def test_a_run_keeps_the_batch_that_was_chosen(tmp_path: Path, measured: Callable[[Ask], None]) -> None:
    measured(levelling(knee=1, room=2))
    auto = small_run(f"runs_dir={tmp_path}", "name=auto", "id=a", "batch_size=auto", "data.train_samples=90")
    fit(auto, quiet=True)
    assert read_checkpoint(tmp_path / "auto/a/checkpoints/last.ckpt")["imgrec"]["config"]["batch_size"] == 2
    assert read_run(tmp_path / "auto/a", "runs").config["batch_size"] == 2
    choice = stored_choice(tmp_path / "auto/a/batch.json")
    assert choice is not None
    assert_error(choice.reason, "batch_size=auto", "2: 1 images/s", "20 steps", "optim.base_batch")
    assert ", the smallest within 10% of the fastest" in (tmp_path / "auto/a/log.txt").read_text()

    measured(levelling(knee=1, room=4))
    found, choice = with_chosen_batch(auto, tmp_path / "auto/a/batch.json", images(90), Terminal(quiet=True))
    assert found.batch_size == 2  # as stored
    assert choice is not None
    assert with_chosen_batch(auto, None, images(90), Terminal(quiet=True))[0].batch_size == 4


@pytest.mark.parametrize(
    ("words", "samples", "expected"),
    [
        (["batch_size=auto"], 4000, (128, 1024)),  # an epoch keeps 20 steps
        (["batch_size=auto"], 400_000, (256, 1024)),  # the knee
        (["batch_size=auto", "max_device_batch=64"], 400_000, (64, 64)),
        (["batch_size=auto", "max_device_batch=auto"], 400_000, (256, 256)),
        (["batch_size=64", "max_device_batch=auto"], 4000, (64, 64)),
        (["batch_size=4096", "max_device_batch=auto"], 40_000, (4096, 512)),
        (["batch_size=full", "max_device_batch=auto"], 4000, ("full", 500)),
        (["batch_size=auto"], 3, (2, 1024)),  # of so few the steps are fewer
        (["batch_size=auto"], 79, (2, 1024)),
        (["batch_size=auto"], 80, (4, 1024)),
        (["batch_size=32"], 4000, (32, 1024)),
    ],
)
def test_both_keys(words: list[str], samples: int, expected: object, measured: Callable[[Ask], None]) -> None:
    measured(levelling(knee=256, room=600))
    run, choice = with_chosen_batch(small_run(*words), None, images(samples), Terminal(quiet=True))
    assert (run.batch_size, run.max_device_batch) == expected
    assert (choice is None) == (words == ["batch_size=32"])


def test_where_nothing_can_be_measured(measured: Callable[[Ask], None]) -> None:
    measured(lambda size: None)
    for words, least in ((["batch_size=auto"], "2 images"), (["max_device_batch=auto"], "1 image,"), (MIXED, "2 images,")):
        key = words[0].partition("=")[0]
        with pytest.raises(ConfigError) as caught:
            with_chosen_batch(small_run(*words).with_classes(3), None, images(4000), Terminal(quiet=True))
        assert_error(str(caught.value), f"{key}=auto", f"a training step of {least}", "the fewest", "a smaller data.image_size")
        assert f"Set {key}" not in str(caught.value)


def test_partners_of_mixup_are_measured_together(measured: Callable[[Ask], None]) -> None:
    measured(levelling(knee=1, room=3))
    run, _ = with_chosen_batch(small_run(*MIXED).with_classes(3), None, images(4000), Terminal(quiet=True))
    assert run.max_device_batch == 2


def test_a_damaged_choice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "batch.json"
    BatchChoice(64, 32, "as it is").store(file)
    assert stored_choice(file) == BatchChoice(64, 32, "as it is")
    file.write_text(json.dumps({"batch_size": "many", "max_device_batch": 1, "reason": ""}))
    with raises_error(DataError, str(file), "batch_size=many", "resume=false"):
        stored_choice(file)


@pytest.mark.slow
def test_ranks_take_the_smallest(measured: Callable[[Ask], None]) -> None:
    def work(rank: int) -> object:
        measured(levelling(knee=1000, room=(64, 32)[int(os.environ["RANK"])]))
        return with_chosen_batch(small_run("batch_size=auto"), None, images(40_000), Terminal(quiet=True))[0].batch_size

    assert run_ranks(2, work, group=True) == [64, 64]  # 32 on each of two


def test_lr_find_names_the_batch_that_its_rate_is_for() -> None:
    words = ["data=digits", "batch_size=auto", "lr_max=1"]
    assert next_command(words, None, 0.01, 128) == "imgrec train data=digits optim.lr=0.01 batch_size=128"
    assert next_command(words[:1], None, 0.01) == "imgrec train data=digits optim.lr=0.01"
