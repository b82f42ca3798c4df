"""A run from end to end: its arithmetic against plain loops of torch, what it leaves, and what it says."""

import csv
import json
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from error_parts import assert_refused, raises_error
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from processes import exit_codes
from scipy.stats import binomtest
from small_run import SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import imgrec
from imgrec import cli, config
from imgrec.config.compose import compose_config
from imgrec.config.instantiate import instantiate
from imgrec.data.preprocess import Preprocess
from imgrec.errors import ConfigError
from imgrec.inference.checkpoint import load_checkpoint
from imgrec.inference.metrics import make_report
from imgrec.terminal import Terminal
from imgrec.train import fit
from imgrec.training.callbacks.ema import average
from imgrec.training.callbacks.history import METRICS
from imgrec.training.last_screen import find_unseen, print_result
from imgrec.training.summary import result_sentence
from imgrec.training.timeline import PARTS, share_column
from imgrec.training.trainer import configured_callbacks

WHOLE = (
    "trainer.limit_train_batches=1.0",
    "trainer.limit_val_batches=1.0",
    "trainer.limit_test_batches=1.0",
    "trainer.channels_last=false",
)


def trained(result_of, run):
    """(weights of last.ckpt by name, result) of a run."""
    result = result_of(run, quiet=True)
    stored = load_checkpoint(f"{run.runs_dir}/{run.name}/{run.id}/checkpoints/last.ckpt")
    return {k.removeprefix("net."): v for k, v in stored.content["state_dict"].items() if k.startswith("net.")}, result


def assert_close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def start(run):
    """The network as a run begins with it, and all of its training images and labels."""
    pl.seed_everything(run.seed, workers=True, verbose=False)
    data = instantiate(run.data.to_node())
    net = instantiate(run.model, num_classes=len(data.classes))
    split = data.split("train")
    images, labels = split.images, torch.as_tensor(split.labels)
    pixels = Preprocess(
        image_size=run.data.image_size, mean=run.data.mean, std=run.data.std, interpolation=run.data.interpolation
    )(images)
    return net, pixels, labels


def test_gradient_descent_is_one_step_an_epoch_on_the_mean_over_all_samples(small):
    run = small(
        "optim=gd",
        "batch_size=full",
        "optim.lr=0.1",
        "scheduler=constant",
        "epochs=3",
        "max_device_batch=7",
        "augment=none",
        "id=a",
        *WHOLE,
    )
    weights, _ = trained(fit, run)
    net, images, labels = start(run)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    assert_close(weights, dict(net.state_dict()), rtol=1e-4, atol=1e-6)


@pytest.mark.slow  # the test above accumulates, and tests/test_step_loss.py has uneven parts of a short batch
def test_accumulated_parts_of_a_batch_give_the_step_of_the_whole(small):
    # 21 samples after the validation cut, batches of 8: the last batch is short, and its parts are uneven.
    keys = ("batch_size=8", "epochs=2", "augment=none", "optim=momentum", "loss.l2=0.01", *WHOLE)
    whole, _ = trained(fit, small(*keys, "id=whole"))
    parts, _ = trained(fit, small(*keys, "max_device_batch=3", "id=parts"))
    assert_close(whole, parts, rtol=1e-4, atol=1e-6)


def test_l2_penalty_is_keras_sum_of_squares_on_weights_only(small):
    run = small(
        "batch_size=full",
        "epochs=1",
        "augment=none",
        "scheduler=constant",
        "loss.l2=0.05",
        "loss.l1=0.01",
        "optim=sgd",
        "optim.lr=0.1",
        "id=a",
        *WHOLE,
    )
    weights, _ = trained(fit, run)
    net, images, labels = start(run)
    loss = F.cross_entropy(net(images), labels)
    for parameter in net.parameters():
        if parameter.ndim >= 2:
            loss = loss + 0.05 * parameter.square().sum() + 0.01 * parameter.abs().sum()
    loss.backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.sub_(0.1 * parameter.grad)
    assert_close(weights, dict(net.state_dict()), rtol=1e-4, atol=1e-6)


def test_averaged_weights_are_the_closed_form_of_the_steps(small):
    """EMA after n steps: the first step's weights, then decay * average + (1 - decay) * weights at each step."""
    keys = ("batch_size=full", "augment=none", "scheduler=constant", "optim=sgd", "optim.lr=0.1", *WHOLE)
    averaged, _ = trained(fit, small(*keys, "epochs=4", "callbacks.ema.decay=0.75", "id=ema"))
    steps: list[dict[str, torch.Tensor]] = []

    class Steps(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *batch):
            steps.append({name: value.clone() for name, value in pl_module.net.state_dict().items()})

    fit(small(*keys, "epochs=4", "id=plain"), quiet=True, callbacks=Steps())
    expected = steps[0]
    for weights in steps[1:]:
        expected = {name: 0.75 * expected[name] + 0.25 * weights[name] for name in expected}
    assert_close(averaged, expected, rtol=1e-4, atol=1e-6)


@example(-math.inf, 0, 0.9)
@given(st.floats(width=32, allow_nan=False), st.integers(-(2**31), 2**31), st.floats(0, 1, exclude_max=True))
def test_the_average_of_a_constant_is_the_constant(number: float, whole: int, decay: float):
    """The mean and std of the images, and index buffers such as those of Swin, are averaged along with the weights."""
    for value in (torch.tensor([number]), torch.tensor([whole])):
        assert torch.equal(average(value, value.clone(), decay=decay), value)


@pytest.mark.slow
def test_frozen_backbone_stays_as_it_was_and_then_moves(small):
    first = small("model=resnet", "model.depth=20", "id=first", "name=first")
    weights, _ = trained(fit, first)
    keys = (
        "model=resnet",
        "model.depth=20",
        f"weights={first.runs_dir}/first/first",
        "finetune.freeze_epochs=1",
        "optim.lr=0.1",
        "name=tuned",
    )
    frozen, _ = trained(fit, small(*keys, "id=frozen"))
    moved, _ = trained(fit, small(*keys, "epochs=2", "id=moved"))
    kept = torch.load(f"{first.runs_dir}/first/first/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(frozen["conv1.weight"], kept["net.conv1.weight"])
    assert torch.equal(frozen["bn1.running_mean"], kept["net.bn1.running_mean"])
    assert not torch.equal(frozen["fc.weight"], weights["fc.weight"])
    assert not torch.equal(moved["conv1.weight"], kept["net.conv1.weight"])


def test_of_equally_good_epochs_the_later_one_is_the_best(small):
    # A rate this small changes no answer: every epoch has the same accuracy.
    run = small("epochs=3", "optim.lr=1e-12", "monitor=val/accuracy", "id=a")
    result = fit(run, quiet=True)
    folder = f"{run.runs_dir}/{run.name}/a/checkpoints"
    assert result["best"]["epoch"] == 3
    assert (
        load_checkpoint(f"{folder}/best.ckpt").content["global_step"]
        == load_checkpoint(f"{folder}/last.ckpt").content["global_step"]
        == 6
    )
    result = fit(small("epochs=3", "optim.lr=0.5", "monitor=val/loss", "id=b"), quiet=True)
    with open(f"{run.runs_dir}/{run.name}/b/metrics.csv") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file)]
    assert result["best"]["val/loss"] == min(losses)


class Stop(Exception):
    """Ends a run in the middle of a test."""


@pytest.mark.slow  # tests/test_resume.py has its parts, and test_ctrl_c_says_how_to_resume the same command
def test_a_run_that_was_cut_short_ends_with_the_weights_of_the_unbroken_one(small, monkeypatch):
    from imgrec.training.callbacks.console import EpochLines

    keys = (
        "model=simple_cnn",
        "model.widths=[4]",
        "model.dense_dropout=0.5",
        "optim=adam",
        "augment=affine",
        "augment.mixup=0.2",
        "epochs=4",
        *WHOLE,
    )
    whole, expected = trained(fit, small(*keys, "id=whole"))
    run = small(*keys)  # without an id: the same command finds the unfinished run by itself
    original = EpochLines.on_train_epoch_start

    def cut(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise Stop
        original(self, trainer, pl_module)

    monkeypatch.setattr(EpochLines, "on_train_epoch_start", cut)
    with pytest.raises(Stop):
        fit(run, quiet=True)
    monkeypatch.undo()
    result = fit(run, quiet=True)
    stored = load_checkpoint(f"{run.runs_dir}/{run.name}/1/checkpoints/last.ckpt").content["state_dict"]
    for name, weight in whole.items():
        assert torch.equal(stored[f"net.{name}"], weight), name
    assert result["test"] == expected["test"]
    with open(f"{run.runs_dir}/{run.name}/1/metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


def test_a_finished_run_is_read_and_not_trained_again(small):
    run = small("id=a")
    first = fit(run, quiet=True)
    assert fit(run, quiet=True) == json.loads(json.dumps(first))


def test_the_best_checkpoint_has_the_weights_alone_and_a_finished_run_two_checkpoints(small, tmp_path):
    """With the average of the weights: that is what both files hold as the network."""
    keys = ("model=simple_cnn", "optim=adam", "monitor=val/loss", "optim.lr=1e-5", "epochs=3", "callbacks.ema.decay=0.5")
    result = fit(small(*keys, "id=a", "trainer.save_every_steps=1"), quiet=True)
    assert result["best"]["epoch"] == 3
    folder = tmp_path / "runs" / result["name"] / "a/checkpoints"
    assert sorted(file.name for file in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    best, last = (torch.load(folder / name, weights_only=True) for name in ("best.ckpt", "last.ckpt"))
    assert best.keys() == {"state_dict", "imgrec", "epoch", "global_step", "pytorch-lightning_version"}
    assert_close(best["state_dict"], last["state_dict"], rtol=0, atol=0)
    assert not all(map(torch.equal, last["state_dict"].values(), last["current_model_state"].values()))
    weights = sum(tensor.nbytes for tensor in best["state_dict"].values())
    assert (folder / "best.ckpt").stat().st_size < weights + 20_000  # and the metadata


def test_no_thread_of_a_run_outlives_it(small):
    before = set(threading.enumerate())
    fit(small(), quiet=True)
    left = {thread for thread in set(threading.enumerate()) - before if thread.name != "imgrec watchdog"}  # it looks every 0.25 s
    assert left == set()


def test_what_a_run_leaves(small, tmp_path):
    run = small(
        "id=a", "epochs=2", "logger=tensorboard", "trainer.log_every_steps=1", "scheduler=cosine", "scheduler.warmup_share=0"
    )
    result = fit(run, quiet=True)
    folder = tmp_path / "runs" / run.name / "a"
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml",
        "metrics.csv",
        "result.json",
        "log.txt",
        "checkpoints",
        "tensorboard",
        "errors.csv",
        "predictions.parquet",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4]
    assert float(rows[-1]["val/loss"]) == result["last"]["val/loss"]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)  # plain data, or this raises
    assert checkpoint["imgrec"]["classes"] == [row["name"] for row in result["test"]["per_class"]]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    points = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for column, tag in {
        "images_per_second": "speed/images_per_second",
        "seconds": "speed/epoch_seconds",
        **dict(zip(METRICS, METRICS, strict=True)),
    }.items():
        if rows[0][column]:
            assert [event.step for event in points[tag]] == [2, 4], column
            assert [event.value for event in points[tag]] == pytest.approx([float(row[column]) for row in rows]), column
    assert [event.step for event in points["train/step_loss"]] == [1, 2, 3, 4]
    by_step = np.array([event.value for event in points["train/step_loss"]]).reshape(2, 2)  # of two epochs
    assert by_step.mean(axis=1) == pytest.approx([float(row["train/loss"]) for row in rows])
    used = [run.optim["lr"] * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]  # the first of four steps at optim.lr
    assert [event.value for event in points["optim/lr"]] == pytest.approx(used)
    assert [event.value for event in points["optim/lr"]][1::2] == pytest.approx([float(row["lr"]) for row in rows])
    for figure in ("accuracy", "macro_f1", "loss"):
        assert [(event.step, event.value) for event in points[f"test/{figure}"]] == [(4, pytest.approx(result["test"][figure]))]
    assert {tag.partition("/")[0] for tag in points} == {"train", "val", "test", "speed", "optim"}
    assert events.Tags()["images"] == [
        "train/batch",
        "test/confusion_matrix",
        "test/recall",
        "test/reliability",
        "test/worst_errors",
    ]


def test_the_weakest_classes_stand_in_the_log(small):
    run = small("id=a")
    result = fit(run, quiet=True)
    rows = [row for row in sorted(result["test"]["per_class"], key=lambda row: row["f1"]) if row["recall"] < 1]
    assert len(rows) > 1, "two steps teach nothing"
    log = (Path(run.runs_dir) / run.name / "a" / "log.txt").read_text()
    assert re.findall(r"weakest: (\w+)  F1 (\S+%), recall", log) == [(row["name"], f"{row['f1']:.2%}") for row in rows]


def test_the_start_screen_has_the_steps_that_are_trained(small):
    run = small("epochs=3", "max_device_batch=3", "trainer.limit_train_batches=0.5", "id=a")
    fit(run, quiet=True)
    folder = Path(run.runs_dir) / run.name / "a"
    steps = load_checkpoint(folder / "checkpoints/last.ckpt").content["global_step"]
    screen = " ".join((folder / "log.txt").read_text().split())
    assert f"{steps // 3} steps an epoch (trainer.limit_train_batches=0.5), {steps} in 3 epochs" in screen


def test_off_a_terminal_there_are_plain_lines_and_no_control_characters(small, capfd):
    run = small("id=a")
    words = [
        f"runs_dir={run.runs_dir}",
        "id=b",
        "data=fake",
        "data.num_classes=3",
        "data.image_size=16",
        "data.train_samples=24",
        "data.test_samples=6",
    ]
    words += ["model=lenet", "epochs=2", "batch_size=4", "logger=none", "trainer=debug"]
    assert exit_codes(1, lambda rank: cli.main(["train", *words])) == [0]
    said = capfd.readouterr()
    assert said.err == ""
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f]", said.out) is None
    assert len(re.findall(r"^ +\d/2 ", said.out, re.M)) == 2


RESULT = {
    "summary": "", "train_seconds": 1.0, "held_back": None, "diagnosis": [], "extended": None,
    "calibration": {"temperature": None, "reason": "few images", "test": None},
}  # fmt: skip


def test_the_result_in_a_line_has_an_interval_for_each_accuracy():
    report = make_report([[176, 4], [0, 180]], top5_hits=0, loss=0.0331, classes=["a", "b"])
    low, high = (100 * limit for limit in binomtest(356, 360).proportion_ci(method="wilson"))
    row = {"epoch": 5, "val/accuracy": 356 / 360}
    without = (
        f"validation accuracy 98.89% ({low:.1f} to {high:.1f}) on 360 images (best epoch 5 by val/loss; there is no test split)"
    )
    assert result_sentence(None, row, None, "val/loss", validated=360) == without
    said = result_sentence(report, row, None, "val/accuracy", validated=144)
    assert said.startswith(
        f"test accuracy 98.89% ({low:.1f} to {high:.1f}), macro F1 98.89% (97.2 to 99.6), loss 0.0331 on 360 images"
    )
    assert said.endswith(" (best epoch 5 by val/accuracy)")


def test_a_class_without_errors_is_not_among_the_weakest(capsys):
    """c has the lowest F1 but one, as others are taken for it."""
    confusion = [[1, 2, 0, 0], [0, 2, 0, 1], [0, 0, 3, 0], [0, 0, 0, 9]]
    report = make_report(confusion, top5_hits=0, loss=0.0, classes=["a", "b", "c", "d"])
    assert report.per_class[3]["f1"] < report.per_class[2]["f1"] == 1
    print_result(
        Terminal(),
        Path("runs/n/1"),
        RESULT,
        report,
        None,
        None,
    )
    said = [line.split() for line in capsys.readouterr().out.splitlines() if "weakest" in line]
    assert [(line[1], line[-1]) for line in said] == [("a", "b"), ("b", "d")]


@pytest.mark.parametrize("has_events", [True, False])
def test_the_next_commands_are_quoted_for_the_shell(tmp_path, monkeypatch, capsys, has_events):
    monkeypatch.chdir(tmp_path)
    run_dir = Path("my runs/it's (1)/1")
    if has_events:
        (run_dir / "tensorboard").mkdir(parents=True)
    print_result(Terminal(), run_dir, RESULT, None, None, "my photos", "report in a.html" if has_events else None)
    typed = [shlex.split(line) for line in capsys.readouterr().out.partition("next:\n")[2].splitlines()]
    assert typed == [
        ["imgrec", "predict", str(run_dir), "my photos"],
        ["imgrec", "evaluate", str(run_dir), "split=val"],
        *[["imgrec", "report", str(run_dir)]] * has_events,
        ["imgrec", "explain", str(run_dir), "my photos"],
        ["imgrec", "export", str(run_dir)],
        ["imgrec", "serve", str(run_dir)],
        *[["tensorboard", "--logdir", "my runs"]] * has_events,
    ]
    for _, command, *words in typed[: -1 if has_events else None]:
        assert compose_config(command, words).get("ckpt", str(run_dir)) == str(run_dir)


@pytest.mark.parametrize("has_errors", [True, False])
def test_of_a_set_in_memory_no_next_command_names_an_image(capsys, has_errors):
    print_result(Terminal(), Path("runs/n/1"), RESULT, None, "errors.csv" if has_errors else None, None)
    said = capsys.readouterr().out.partition("next:\n")[2].splitlines()
    explain = ["imgrec explain runs/n/1"] * has_errors  # the errors of its test
    assert [line.strip() for line in said] == [
        "imgrec evaluate runs/n/1 split=val", *explain, "imgrec export runs/n/1", "imgrec serve runs/n/1",
    ]  # fmt: skip


def test_what_is_predicted_next_is_a_file_of_the_test_where_there_are_files(tmp_path):
    for split, count in {"train": 4, "val": 2, "test": 2}.items():
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8)).save(tmp_path / split / name / f"{i}.png")
    folder = instantiate(config.load("train", [str(tmp_path)]).data.to_node())
    assert find_unseen(folder) == str(tmp_path / "test/a/0.png")
    assert find_unseen(instantiate(config.load("train", SMALL).data.to_node())) is None


@pytest.mark.parametrize(
    ("argv", "typed"),
    [
        (["/a/imgrec/train.py", "data=digits", "name=two words"], "python -m imgrec.train data=digits 'name=two words'"),
        (["/a/bin/imgrec", "train", "data=digits"], "imgrec train data=digits"),
        (["/a/imgrec/cli.py", "train", "data=digits"], "imgrec train data=digits"),
        (["study.py"], "study.py"),
    ],
)
def test_the_command_is_kept_as_it_can_be_typed_again(monkeypatch, argv, typed):
    from imgrec.training.summary import command_line

    monkeypatch.setattr(sys, "argv", argv)
    assert command_line(sys.argv) == typed


def test_the_api_trains_under_its_own_name(small):
    import imgrec.train as module

    assert imgrec.train is module
    assert imgrec.fit is module.fit
    assert imgrec.fit(small("id=a"), quiet=True)["status"] == "finished"


def test_a_callback_that_is_null_is_off_and_one_without_a_target_is_refused():
    names = (
        "throughput",
        "steps",
        "console",
        "pictures",
        "histograms",
        "ema",
        "batch_norm",
        "progressive_size",
        "early_stopping",
    )
    run = config.load("train", ["model=simple_cnn", *(f"callbacks.{name}=null" for name in names)])
    assert run.callbacks == dict.fromkeys(names)
    assert configured_callbacks(run.callbacks, {}) == []
    with raises_error(ConfigError, "a config group", "_target_", "decay"):
        configured_callbacks({"ema": {"decay": 0.9}}, {})


def test_console_throughput_and_steps_are_off_where_they_are_null(small, capsys):
    run = small("logger=csv", "epochs=1", "trainer.log_every_steps=1", "id=all")
    fit(run)
    printed = capsys.readouterr().out
    fit(small("logger=csv", "epochs=1", "id=few", *(f"callbacks.{name}=null" for name in ("throughput", "steps", "console"))))
    fewer = capsys.readouterr().out
    folder = Path(run.runs_dir) / run.name
    with (folder / "all/metrics.csv").open() as all_file, (folder / "few/metrics.csv").open() as few_file:
        (row,), (less,) = csv.DictReader(all_file), csv.DictReader(few_file)
    measured = {"images_per_second", *map(share_column, PARTS), "seconds"}
    assert all(row[name] for name in measured)
    assert {name: value for name, value in row.items() if name not in measured} | dict.fromkeys(measured, "") == less
    assert "train loss" in printed
    assert "train loss" not in fewer
    points = (folder / "all/csv/metrics.csv").read_text(), (folder / "few/csv/metrics.csv").read_text()
    assert "train/step_loss" in points[0]
    assert "optim/lr" in points[0]
    assert "train/loss" in points[1]
    assert "step_loss" not in points[1]
    assert "optim/" not in points[1]


@pytest.mark.parametrize("order", [("throughput", "console"), ("console", "throughput")])
def test_history_collects_what_throughput_measured_and_the_console_prints_it_in_any_order_of_the_nodes(small, order, capsys):
    run = small("epochs=1", "id=1")
    callbacks = {name: run.callbacks[name] for name in order}
    fit(replace(run, callbacks=callbacks))
    with (Path(run.runs_dir) / run.name / "1/metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    speed = f"{float(row['images_per_second']):,.0f}"
    assert any(line.split()[:1] == ["1/1"] and speed in line.split() for line in capsys.readouterr().out.splitlines())


def test_everything_that_reads_images_has_a_bar_also_after_the_last_epoch(small, monkeypatch):
    from imgrec.training.callbacks.console import EpochLines

    bars: list[tuple[str, int, int]] = []
    begin, advance = EpochLines._begin, EpochLines.on_test_batch_end

    def noted(self, what: str, total: int, done: int = 0) -> None:
        bars.append((what, total, 0))
        begin(self, what, total, done)

    def counted(self, *args) -> None:
        bars[-1] = (*bars[-1][:2], bars[-1][2] + 1)
        advance(self, *args)

    monkeypatch.setattr(EpochLines, "_begin", noted)
    for hook in ("on_train_batch_end", "on_validation_batch_end", "on_predict_batch_end", "on_test_batch_end"):
        monkeypatch.setattr(EpochLines, hook, counted)
    fit(small("data.train_samples=80", "data.val_share=0.5"))
    assert list(dict.fromkeys(what for what, *_ in bars)) == ["epoch 1/1", "validation", "calibration", "test"]
    assert all(total == done for what, total, done in bars if what in ("calibration", "test"))


def test_ctrl_c_says_how_to_resume(small, monkeypatch, capsys):
    from imgrec import cli
    from imgrec.training.callbacks.console import EpochLines

    def press(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, trainer, pl_module)

    original = EpochLines.on_train_epoch_start
    run = small()
    monkeypatch.setattr(EpochLines, "on_train_epoch_start", press)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert cli.main(["train", *SMALL, "epochs=2", f"runs_dir={run.runs_dir}"]) == 75
    finally:
        signal.signal(signal.SIGINT, before)
    assert_refused(capsys.readouterr().err, "stopped by SIGINT", "step 2", "epoch 2 of 2", "saved", "same command")
    saved = time.localtime((Path(run.runs_dir) / "fake_lenet/1/checkpoints/last.ckpt").stat().st_mtime)
    monkeypatch.undo()
    assert cli.main(["train", *SMALL, "epochs=2", f"runs_dir={run.runs_dir}"]) == 0
    said = f"resuming {run.runs_dir}/fake_lenet/1 from step 2, stopped on {time.strftime('%Y-%m-%d %H:%M', saved)}"
    assert said in " ".join(capsys.readouterr().out.split())
