"""The metrics of a checkpoint on any split, or on another folder: python -m imgrec.evaluate ckpt=runs/NAME/ID"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from imgrec.config.compose import compose_config
from imgrec.config.schema import Device, Precision, ProcessesConfig, Split, dotted_types, parse_settings
from imgrec.config.start_checks import check_gpu
from imgrec.distributed.command import run_command
from imgrec.distributed.process_group import on_first_rank
from imgrec.distributed.worker_group import WorkerGroup, worker_group
from imgrec.errors import ConfigError, DataError, first_names
from imgrec.files import atomic_write, begins_with, check_output, is_our_png
from imgrec.inference.paths import find_checkpoint
from imgrec.inference.prediction_table import PredictionFiles, check_prediction_files
from imgrec.terminal import Terminal, percents

MOST_CLASSES = 20  # lines of the table per class, and of the confusion matrix on a terminal
MARK = b'{\n "imgrec": "evaluate"'  # how our JSON begins


@dataclass(frozen=True)
class DataChanges:
    """Keys of the run's data that may differ from those of the training; None: as in the run."""

    root: str | None
    file: str | None
    download: bool | None
    on_bad_image_eval: Literal["refuse", "skip"] | None
    image_size: int | None


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The keys of conf/evaluate.yaml."""

    ckpt: str | None
    split: Split
    folder: str | None
    data: DataChanges
    batch_size: int | None
    num_workers: int | Literal["auto"]
    device: Device
    precision: Precision | None
    trainer: ProcessesConfig
    out: str | None
    plot: str | None
    overwrite: bool


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Measure, print the tables, write the files; of several processes each measures its share."""
    config = parse_settings(EvaluateConfig, compose_config("evaluate", argv, config_dir, types=dotted_types(EvaluateConfig)))
    with worker_group(config.trainer.timeout_s) as group:
        return _evaluate(config, *on_first_rank(lambda: _check_files(config)), group)


def _check_files(config: EvaluateConfig) -> tuple[Path, Path, Path | None, PredictionFiles]:
    """The checkpoint file, and the files to write: figures, confusion matrix and predictions, each checked."""
    if config.ckpt is None:
        raise ConfigError("ckpt=null: evaluate needs a checkpoint. Set ckpt=runs/NAME/ID, or a .ckpt file.")
    file = find_checkpoint(config.ckpt)
    check_gpu("device", config.device)
    if config.folder is not None and not Path(config.folder).is_dir():
        raise DataError(f"folder={config.folder} is no folder. Set folder=FOLDER that holds CLASS/*.jpg.")
    what = config.split if config.folder is None else Path(config.folder).resolve().name
    run_dir = file.parent.parent
    if file.parent.name != "checkpoints" or not (run_dir / "config.yaml").is_file():
        run_dir = Path()  # the checkpoint was moved out of its run
    out = Path(config.out) if config.out else run_dir / f"evaluate_{what}.json"
    plot = None if config.plot == "none" else Path(config.plot) if config.plot else out.with_suffix(".png")
    check_output("out", out, (".json",), ours=begins_with(MARK), overwrite=config.overwrite)
    if plot is not None:
        check_output("plot", plot, (".png",), ours=is_our_png, overwrite=config.overwrite)
    return file, out, plot, check_prediction_files(out.with_suffix(""), sheet=plot is not None, overwrite=config.overwrite)


def _evaluate(
    config: EvaluateConfig, file: Path, out: Path, plot: Path | None, files: PredictionFiles, group: WorkerGroup
) -> int:
    from imgrec.inference.checkpoint import load_checkpoint, package_versions, weights_hash
    from imgrec.inference.confusion_matrix import confusion_table, draw_confusion_matrix
    from imgrec.inference.evaluation import at_image_size, evaluation_images
    from imgrec.inference.measure import measure_images
    from imgrec.inference.metrics_table import report_tables
    from imgrec.inference.predictor import Predictor
    from imgrec.inference.reliability import draw_reliability, measure_reliability, reliability_sentence
    from imgrec.inference.split_predictions import write_predictions

    terminal = Terminal(quiet=group.rank > 0)
    group.set_status("reading the checkpoint and the data")
    checkpoint = at_image_size(load_checkpoint(file), config.data.image_size)
    predictor = Predictor(checkpoint, device=config.device, precision=config.precision)
    images, counts, changes = evaluation_images(checkpoint, split=config.split, folder=config.folder, changes=asdict(config.data))
    what = f"folder {config.folder}" if config.folder else f"{config.split} split"
    where = f"{predictor.device}, precision {predictor.precision}{f', {group.size} processes' * (group.size > 1)}"
    terminal.say(
        f"{file} (epoch {checkpoint.content['epoch'] + 1}) on the {what}: {len(images):,} image{'s' * (len(images) != 1)}; {where}"
    )
    if changes is not None and changes.counts:
        terminal.say(
            f"the images have changed since the training: {changes}{'; new ones are left out' * bool(changes.counts['new'])}",
            style="yellow",
        )
    start = time.perf_counter()
    with terminal.bar() as bar:
        task = bar.add_task("images", total=None, note="")
        report, predictions, bad = measure_images(
            predictor,
            images,
            counts,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            group=group,
            watch=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if predictions is None:
        return 0
    group.set_status("writing the figures")
    seconds = time.perf_counter() - start
    terminal.say()
    terminal.say(report_tables(report, most=MOST_CLASSES, rules=terminal.console.is_terminal))
    terminal.say()
    terminal.say(confusion_table(report, width=terminal.console.width, most=MOST_CLASSES))
    terminal.say()
    if bad:
        left = "image could not be read and is" if len(bad) == 1 else "images could not be read and are"
        terminal.say(f"{len(bad):,} {left} left out: {first_names(bad, 3)}", style="yellow")
    if counts is None and checkpoint.run.loss.get("class_weights") == "balanced":
        terminal.say(
            "The loss counts every image alike: class weights follow the training counts, which are not read for a folder."
        )
    reliability = measure_reliability(predictions, images.labels, predictor.temperature)
    terminal.say(reliability_sentence(reliability))
    content = {
        "imgrec": "evaluate",
        "checkpoint": str(file.relative_to(out.parent) if file.is_relative_to(out.parent) else file),
        "weights": weights_hash(checkpoint.content),
        "split": config.split if config.folder is None else None,
        "folder": config.folder,
        "figures": report.to_dict(),
        "calibration": reliability,
        "unread_images": bad,
        "image_size": predictor.preprocessing["image_size"],
        "changed_images": {} if changes is None else dict(changes.counts),
        "device": str(predictor.device),
        "precision": predictor.precision,
        "processes": group.size,
        "seconds": round(seconds, 2),
        "versions": package_versions(),
    }
    atomic_write(out, json.dumps(content, indent=1))
    if plot is not None:
        title = f"{checkpoint.run.name}, {what}: {report.accuracy:.2%} {percents(report.accuracy_interval)} of {report.count:,} images right"
        atomic_write(plot, draw_confusion_matrix(report, title=title))
    if files.reliability is not None:
        title = f"{checkpoint.run.name}, {what}: {report.count:,} images"
        atomic_write(files.reliability, draw_reliability(predictions, images.labels, reliability, title=title))
    terminal.say(f"figures in {out}" + ("" if plot is None else f", confusion matrix in {plot}"))
    if files.reliability is not None:
        terminal.say(f"reliability diagram in {files.reliability}")
    terminal.say(write_predictions(files, predictions, images, checkpoint.classes))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("evaluate", main, sys.argv[1:]))
