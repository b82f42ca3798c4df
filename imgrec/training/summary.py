"""The start screen of a training, result.json and the lines at the end."""

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from imgrec.analysis.diagnosis import (
    LEARNED_NOTHING,
    Epochs,
    Finding,
    diagnose,
    label_noise,
    leak_suspected,
    never_predicted,
    unlike_validation,
)
from imgrec.analysis.intervals import share_interval
from imgrec.config.schema import SPLITS, DataConfig, Node, RunConfig
from imgrec.data.datamodule import DataModule
from imgrec.data.folder_classes import EMPTY_FOLDER
from imgrec.data.image_data import ImageData
from imgrec.data.jpeg import FASTEST
from imgrec.errors import first_names, plural
from imgrec.inference.checkpoint import package_versions
from imgrec.inference.metrics import Report
from imgrec.models.summary import ModelSize
from imgrec.paths import BEST, CHECKPOINTS, LAST, suspects_command
from imgrec.scan.known_faults import KnownFaults
from imgrec.terminal import percent, percents
from imgrec.training.batch_choice import BatchChoice
from imgrec.training.callbacks.history import History
from imgrec.training.distill import Teacher
from imgrec.training.final_test import Tests
from imgrec.training.held_back import held_back
from imgrec.training.measured_file import MEASURED_FILE, measured_file
from imgrec.training.optimizer import rate_sentence, written_rate
from imgrec.training.resume_point import ResumePoint
from imgrec.training.tested_checkpoint import Tested

FAR_SHARE = 1.5  # factor on the wanted share of a split above which the start screen says it


def start_screen(
    run: RunConfig,
    run_dir: Path,
    device: str,
    loaders: DataModule,
    size: ModelSize,
    of_weights: Mapping[str, str],
    teacher: Teacher | None,
    resume: ResumePoint | None,
    faults: KnownFaults,
    choice: BatchChoice | None,
) -> Table:
    """The start screen: run directory, device, data and its faults, network, batch, rate; of_weights: of `starting_network`."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    plan = loaders.plan
    limit = run.trainer.limit_train_batches
    limited = "" if limit == 1.0 and isinstance(limit, float) else f" (trainer.limit_train_batches={limit})"
    whole = f"{plan.steps_per_epoch * run.epochs:,} in {plural(run.epochs, 'epoch')}"
    steps = f"{plural(plan.steps_per_epoch, 'step')} an epoch{limited}, {whole if run.time is None else f'as many as fit into time={run.time}'}"
    warmup = f"{run.scheduler.get('warmup_share', 0):.0%} warm-up"
    settings = ", ".join(f"{key}={run.model[key]}" for key in ("name", "depth", "stem", "head") if key in run.model)
    network = _name(run.model) + (f" ({settings})" if settings else "")
    rows = {
        "run": str(run_dir) if resume is None else _resumed(run, run_dir, resume),
        "device": device,
        "data": _data_row(run.data, loaders) + ("" if run.sampling == "shuffle" else f", sampling={run.sampling}"),
        "network": f"{network}: {size.parameters:,} parameters, {size.flops / 1e6:,.1f} MFLOPs an image",
        "batch": f"{plan}; {steps}" + ("" if choice is None else f"\n{choice.reason}"),
        "rate": f"{_name(run.optim)} {rate_sentence(run.optim, plan.global_size)}, {_name(run.scheduler)} with {warmup}",
        "loader": (plural(loaders.workers, "worker process", "es") if loaders.workers else "in this process")
        + _decoded(run.data),
    }
    if teacher is not None:
        rows["teacher"] = teacher.sentence()
    if groups := loaders.data.group_counts():
        rows["groups"] = ", ".join(f"{split} {count:,}" for split, count in groups.items()) + ": none is in two splits"
    if shares := _far_shares(loaders.data):
        rows["shares"] = shares
    if ignored := loaders.data.ignored:
        rows["ignored"] = (
            ", ".join(
                plural(count, kind) if kind == EMPTY_FOLDER else f"{count:,} {kind}" for kind, count in ignored.most_common()
            )
            + ": no images"
        )
    if beside := loaders.data.beside:
        rows["beside"] = f"{plural(len(beside), 'folder')} beside those of the splits, not read: {first_names(beside, 3)}"
    if lines := faults.lines():
        rows["check"] = "\n".join(lines)
    for name, text in (rows | dict(of_weights)).items():
        table.add_row(name, text)
    return table


def _far_shares(data: ImageData) -> str:
    """A sentence about splits that have much more or fewer images than wanted, as they are cut off by whole groups."""
    far = [
        f"{split} has {percent(found)} of the images, not data.{split}_share={wanted}"
        for split, (wanted, found) in data.group_shares.items()
        if not wanted / FAR_SHARE <= found <= wanted * FAR_SHARE
    ]
    return f"{', '.join(far)}: groups stay whole. Try another data.split_seed" if far else ""


def _resumed(run: RunConfig, run_dir: Path, resume: ResumePoint) -> str:
    """'resuming runs/digits_resnet/1 from step 200, stopped on 2026-11-26 14:20'"""
    if run.epochs > resume.epochs:
        return f"{run_dir} is trained on from step {resume.position.step:,}, with {run.epochs} epochs instead of {resume.epochs}"
    file = "" if resume.file.name == LAST else f" ({resume.file.name})"
    stopped = time.strftime("%Y-%m-%d %H:%M", time.localtime(resume.saved_at))
    return f"resuming {run_dir} from step {resume.position.step:,}{file}, stopped on {stopped}"


def _data_row(config: DataConfig, loaders: DataModule) -> str:
    """'Digits: train 1,293, val 144, test 360 images of 8x8x1, 10 classes with 125 to 131 in train'"""
    data = loaders.data
    counts = {split: data.counts(split) for split in SPLITS}
    fewest, most = counts["train"].min(), counts["train"].max()
    splits = ", ".join(f"{split} {count.sum():,}" for split, count in counts.items() if count.any())
    per_class = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    shape = f"{config.image_size}x{config.image_size}x{config.channels}"
    listed = config.own.get("skip_list")
    without = "" if listed is None else f", without those in {listed}"
    return f"{_name(config.own)}: {splits} images of {shape}, {len(data.classes)} classes with {per_class} in train{without}"


def _decoded(config: DataConfig) -> str:
    """', JPEG by simplejpeg', of data that is read from files."""
    decoder = config.own.get("decoder")
    return "" if decoder is None else f", JPEG by {FASTEST if decoder == 'auto' else decoder}"


def describe_device(device: torch.device, processes: int, precision: str) -> str:
    """'2 x NVIDIA H200, precision bf16-mixed' or 'cpu with 2 threads, precision 32'."""
    name = device.type
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = f"cpu with {plural(torch.get_num_threads(), 'thread')}"
    return f"{f'{processes} x ' if processes > 1 else ''}{name}, precision {precision}"


def _name(node: dict[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def run_result(
    run: RunConfig,
    history: History,
    tested: Tested,
    tests: Tests,
    device: str,
    size: ModelSize,
    command: Sequence[str],
    *,
    longer: str,
    loaders: DataModule,
    faults: KnownFaults,
    run_dir: Path,
) -> dict[str, Any]:
    """The content of result.json; longer: what to type to train it longer."""
    best, last, shares, report = history.best(), history.rows[-1], history.time_shares(), tests.report
    seconds = sum(row.get("seconds", 0.0) for row in history.rows)
    rows = {BEST: best, LAST: last}
    held_out = sum(int(loaders.data.counts(split).sum()) for split in ("val", "test"))
    worth = f"{faults.command} {shlex.quote(f'ckpt={run_dir}')}"  # which takes the table of a test
    leaks = leak_suspected(faults.leaked, held_out, faults.command if report is None else worth, tested=report is not None)

    def measured_with(name: str) -> Node | None:
        row = rows[name]
        return row and {"file": f"{CHECKPOINTS}/{name}", "epoch": row["epoch"], "sha256": tested.weights[name]}

    return {
        "summary": result_sentence(report, rows[tested.name] or last, best, run.monitor, validated=loaders.images_read("val")),
        "status": "finished",
        "name": run.name,
        "command": command_line(command),
        "seed": run.seed,
        "best": best,
        "last": last,
        "test": None if report is None else report.to_dict(),
        "calibration": tests.calibration,
        "extended": tests.extended,
        "weights": {  # with which these figures were measured
            "best": measured_with(BEST),
            "last": measured_with(LAST),
            "test": None if report is None else measured_with(tested.name),
        },
        MEASURED_FILE: measured_file(run_dir, f"{CHECKPOINTS}/{tested.name}"),
        "images": {split: dict(zip(loaders.data.classes, loaders.data.counts(split).tolist(), strict=True)) for split in SPLITS},
        "left_out": tests.bad_images,
        "train_seconds": round(seconds, 2),
        "time_shares": {part: round(share, 4) for part, share in shares.items()},
        "held_back": held_back(shares, seconds, run, loaders),
        "data_faults": [fault._asdict() for fault in faults.found],
        "diagnosis": [
            finding._asdict()
            for finding in [*leaks, *_diagnosis(run, history, rows[tested.name] or last, tests, loaders, longer, run_dir)]
        ],
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": device,
        "parameters": size.parameters,
        "flops": size.flops,
        "versions": package_versions(),
    }


def _diagnosis(
    run: RunConfig, history: History, tested: Mapping[str, Any], tests: Tests, loaders: DataModule, longer: str, run_dir: Path
) -> list[Finding]:
    """What the curves say, and the test; tested: the metrics of the epoch whose weights were tested."""
    keys = ("train/loss", "val/loss", "val/accuracy")
    figures = [[row[key] for key in keys] for row in history.rows if all(key in row for key in keys)]
    counts = loaders.data.counts("val")
    found = diagnose(
        Epochs(*np.reshape(figures, (-1, len(keys))).T),
        images=loaders.images_read("val"),
        most_frequent=counts.max() / max(1, counts.sum()),
        lr=written_rate(run.optim),
        longer=longer,
    )
    report, predictions = tests.report, tests.predictions
    if report is None or any(finding.rule == LEARNED_NOTHING for finding in found):
        return found
    if "val/accuracy" in tested:
        validated = tested["val/accuracy"], loaders.images_read("val")
        if unlike := unlike_validation(validated, (report.accuracy, report.count)):
            return [*found, *unlike]  # which classes it never predicts follows
    found += never_predicted(report.confusion, loaders.data.classes)
    if predictions is None:  # on another rank than the first, which writes the result
        return found
    labels = loaders.data.split("test").labels[predictions.indices]
    return found + label_noise(labels, predictions.predicted, predictions.probability, suspects_command(run_dir))


def command_line(argv: Sequence[str]) -> str:
    """The shell command of these arguments."""
    file = Path(argv[0])
    start = [file.name]
    if file.suffix == ".py" and file.parent.name == "imgrec":  # of python -m
        start = ["imgrec"] if file.stem == "cli" else ["python", "-m", f"imgrec.{file.stem}"]
    return shlex.join([*start, *argv[1:]])


def is_train_command(argv: Sequence[str]) -> bool:
    """Whether these arguments are `imgrec train` or `extend`, also as `python -m imgrec.train`, and not a script that calls imgrec.fit."""
    return re.match(r"(imgrec |python -m imgrec\.)(train|extend)\b", command_line(argv)) is not None


def result_sentence(
    report: Report | None,
    row: dict[str, Any],
    best: dict[str, Any] | None,
    monitor: str,
    *,
    validated: int,
    chosen: str | None = None,
) -> str:
    """The result in a line; row: the metrics of the epoch whose weights were tested, best: those of the best epoch.

    validated: images that each validation read. chosen: in words, which weights were tested, where they are of no one epoch.
    """
    epoch = chosen or f"best epoch {row['epoch']} by {monitor}"
    if chosen is None and best is not None and best["epoch"] != row["epoch"]:
        epoch = f"epoch {row['epoch']}, as the weights of the best, epoch {best['epoch']} by {monitor}, are lost"
    if report is None:
        share = row["val/accuracy"]
        interval = percents(share_interval(round(share * validated), validated))
        return (
            f"validation accuracy {percent(share)} {interval} on {plural(validated, 'image')} ({epoch}; there is no test split)"
        )
    top5 = "" if report.top5 is None else f", top-5 {percent(report.top5)}"
    accuracy = f"test accuracy {percent(report.accuracy)} {percents(report.accuracy_interval)}"
    macro = f"macro F1 {percent(report.macro_f1)} {percents(report.macro_f1_interval)}"
    return f"{accuracy}{top5}, {macro}, loss {report.loss:.4f} on {plural(report.count, 'image')} ({epoch})"
