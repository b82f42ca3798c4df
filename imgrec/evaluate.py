"""The metrics of a checkpoint on any split, or on another folder: python -m imgrec.evaluate ckpt=runs/NAME/ID"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from imgrec.config.compose import compose_config
from imgrec.config.overrides import split_texts
from imgrec.config.schema import Device, Node, Precision, ProcessesConfig, Split, Views, dotted_types, parse_settings
from imgrec.config.start_checks import check_gpu
from imgrec.distributed.command import run_command
from imgrec.distributed.process_group import on_first_rank
from imgrec.distributed.worker_group import WorkerGroup, worker_group
from imgrec.errors import ConfigError, DataError, first_names
from imgrec.files import atomic_write, begins_with, check_output, is_our_png
from imgrec.inference.paths import find_checkpoint
from imgrec.inference.prediction_table import PredictionFiles, check_prediction_files
from imgrec.terminal import Terminal, percents

if TYPE_CHECKING:
    from imgrec.analysis.robustness import Robustness
    from imgrec.inference.evaluation import EvaluationImages
    from imgrec.inference.image_facts import Sliced
    from imgrec.inference.metrics import Report
    from imgrec.inference.predictor import Predictor
    from imgrec.inference.split_predictions import SplitPredictions

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
    by: str | list[str] | None
    corruptions: str | list[str] | None
    tta: Views | None
    data: DataChanges
    batch_size: int | None
    num_workers: int | Literal["auto"]
    device: Device
    precision: Precision | None
    calibrated: bool
    trainer: ProcessesConfig
    out: str | None
    plot: str | None
    overwrite: bool


class EvaluateFiles(NamedTuple):
    """The checkpoint file, and the files to write; None: no picture."""

    ckpt: Path
    out: Path
    plot: Path | None
    slices: Path | None
    corruptions: Path | None
    predictions: PredictionFiles


class Evaluated(NamedTuple):
    """What was measured, on the first process."""

    predictor: "Predictor"
    found: "EvaluationImages"
    report: "Report"
    predictions: "SplitPredictions"
    bad: list[str]  # paths of images that could not be read
    reliability: Node
    sliced: "Sliced"
    robustness: "Robustness | None"
    processes: int
    seconds: float


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Measure, print the tables, write the files; of several processes each measures its share."""
    config = parse_settings(EvaluateConfig, compose_config("evaluate", argv, config_dir, types=dotted_types(EvaluateConfig)))
    with worker_group(config.trainer.timeout_s) as group:
        return _evaluate(config, on_first_rank(lambda: _check_files(config)), group)


def _check_files(config: EvaluateConfig) -> EvaluateFiles:
    """Each checked."""
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
    slices, corruptions = (
        out.with_name(f"{out.stem}_{name}.png") if value is not None and plot is not None else None
        for name, value in (("slices", config.by), ("corruptions", config.corruptions))
    )
    for name, picture in (("plot", plot), ("out", slices), ("out", corruptions)):
        if picture is not None:
            check_output(name, picture, (".png",), ours=is_our_png, overwrite=config.overwrite)
    predictions = check_prediction_files(out.with_suffix(""), sheet=plot is not None, overwrite=config.overwrite)
    return EvaluateFiles(file, out, plot, slices, corruptions, predictions)


def _names(value: str | list[str] | None) -> list[str]:
    """The names of A,B or [A,B], each once."""
    return list(dict.fromkeys(split_texts(value) if isinstance(value, str) else value or []))


def _evaluate(config: EvaluateConfig, files: EvaluateFiles, group: WorkerGroup) -> int:
    from imgrec.inference.checkpoint import load_checkpoint
    from imgrec.inference.corrupted_images import announce_corrupted, corruption_names, measure_corrupted
    from imgrec.inference.evaluation import at_image_size, evaluation_images
    from imgrec.inference.image_facts import BRIGHTNESS, BrightnessCollector, read_slice_columns, slice_images
    from imgrec.inference.measure import measure_images
    from imgrec.inference.predictor import Predictor
    from imgrec.inference.reliability import measure_reliability
    from imgrec.inference.tta import mirror_note, read_as

    terminal = Terminal(quiet=group.rank > 0)
    group.set_status("reading the checkpoint and the data")
    checkpoint = at_image_size(load_checkpoint(files.ckpt), config.data.image_size)
    predictor = Predictor(
        checkpoint, device=config.device, precision=config.precision, calibrated=config.calibrated, tta=config.tta
    )
    found = evaluation_images(checkpoint, split=config.split, folder=config.folder, changes=asdict(config.data))
    found = found._replace(images=read_as(found.images, predictor.preprocessing))
    images, by = found.images, _names(config.by)
    columns, kinds = read_slice_columns(by, images, found.data), corruption_names(_names(config.corruptions))
    where = f"{predictor.device}, precision {predictor.precision}{f', {group.size} processes' * (group.size > 1)}"
    terminal.say(
        f"{files.ckpt} (epoch {checkpoint.content['epoch'] + 1}) on the {_what(config)}: {len(images):,} image{'s' * (len(images) != 1)}; {where}"
    )
    if note := mirror_note(checkpoint, config.tta):
        terminal.say(note, style="yellow")
    if found.changes is not None and found.changes.counts:
        terminal.say(
            f"the images have changed since the training: {found.changes}"
            f"{'; new ones are left out' * bool(found.changes.counts['new'])}",
            style="yellow",
        )
    brightness = BrightnessCollector() if BRIGHTNESS in by else None
    start = time.perf_counter()
    with terminal.bar() as bar:
        task = bar.add_task("images", total=None, note="")
        report, predictions, bad = measure_images(
            predictor,
            images,
            found.counts,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            group=group,
            watch=lambda done, total: bar.update(task, completed=done, total=total),
            seen=(lambda batch: None) if brightness is None else brightness.update,
        )
    seconds = time.perf_counter() - start
    levels = None if brightness is None else brightness.gather(group)
    robustness = None
    if kinds:
        terminal.say(announce_corrupted(images, kinds, config.num_workers, clean_seconds=seconds, processes=group.size))
        with terminal.bar() as bar:
            task = bar.add_task("corrupted images", total=None, note="")
            robustness = measure_corrupted(
                predictor,
                images,
                kinds,
                batch_size=config.batch_size,
                num_workers=config.num_workers,
                group=group,
                watch=lambda done, total: bar.update(task, completed=done, total=total),
            )
    if predictions is None:
        return 0
    group.set_status("writing the figures")
    with terminal.progress_shown():
        sliced = slice_images(by, images, predictions, levels, columns)
    reliability = measure_reliability(predictions, images.labels, predictor.temperature)
    measured = Evaluated(predictor, found, report, predictions, bad, reliability, sliced, robustness, group.size, seconds)
    _say(terminal, measured)
    _write(terminal, config, files, measured)
    return 0


def _what(config: EvaluateConfig) -> str:
    return f"folder {config.folder}" if config.folder else f"{config.split} split"


def _say(terminal: Terminal, measured: Evaluated) -> None:
    from imgrec.inference.confusion_matrix import confusion_table
    from imgrec.inference.corruption_table import corruptions_sentence, corruptions_table
    from imgrec.inference.metrics_table import report_tables
    from imgrec.inference.reliability import reliability_sentence
    from imgrec.inference.slice_table import slices_sentences, slices_table

    rules, bad, sliced = terminal.console.is_terminal, measured.bad, measured.sliced
    terminal.say()
    terminal.say(report_tables(measured.report, most=MOST_CLASSES, rules=rules))
    terminal.say()
    terminal.say(confusion_table(measured.report, width=terminal.console.width, most=MOST_CLASSES))
    terminal.say()
    if bad:
        left = "image could not be read and is" if len(bad) == 1 else "images could not be read and are"
        terminal.say(f"{len(bad):,} {left} left out: {first_names(bad, 3)}", style="yellow")
    if measured.found.counts is None and measured.predictor.checkpoint.run.loss.get("class_weights") == "balanced":
        terminal.say(
            "The loss counts every image alike: class weights follow the training counts, which are not read for a folder."
        )
    terminal.say(reliability_sentence(measured.reliability))
    if sliced.slices:
        terminal.say()
        terminal.say(slices_table(sliced.slices, rules=rules))
        terminal.say()
    for line in slices_sentences(sliced):
        terminal.say(line)
    if (robustness := measured.robustness) is not None:
        terminal.say()
        terminal.say(corruptions_table(robustness, rules=rules))
        terminal.say()
        terminal.say(corruptions_sentence(robustness, measured.report))


def _write(terminal: Terminal, config: EvaluateConfig, files: EvaluateFiles, measured: Evaluated) -> None:
    from imgrec.inference.checkpoint import package_versions, weights_hash
    from imgrec.inference.confusion_matrix import draw_confusion_matrix
    from imgrec.inference.corruption_table import corruptions_node, draw_corruptions
    from imgrec.inference.reliability import draw_reliability
    from imgrec.inference.slice_table import draw_slices
    from imgrec.inference.split_predictions import write_predictions

    predictor, report, predictions = measured.predictor, measured.report, measured.predictions
    robustness, about = measured.robustness, f"{predictor.checkpoint.run.name}, {_what(config)}"
    checkpoint, labels, changes = predictor.checkpoint, measured.found.images.labels, measured.found.changes
    content = {
        "imgrec": "evaluate",
        "checkpoint": str(
            files.ckpt.relative_to(files.out.parent) if files.ckpt.is_relative_to(files.out.parent) else files.ckpt
        ),
        "weights": weights_hash(checkpoint.content),
        "split": config.split if config.folder is None else None,
        "folder": config.folder,
        "figures": report.to_dict(),
        "calibration": measured.reliability,
        "slices": [asdict(row) for row in measured.sliced.slices],
        "corruptions": None if robustness is None else corruptions_node(robustness, report),
        "unread_images": measured.bad,
        "tta": config.tta,
        "image_size": checkpoint.preprocessing["image_size"],
        "changed_images": {} if changes is None else dict(changes.counts),
        "device": str(predictor.device),
        "precision": predictor.precision,
        "processes": measured.processes,
        "seconds": round(measured.seconds, 2),
        "versions": package_versions(),
    }
    atomic_write(files.out, json.dumps(content, indent=1))
    if files.plot is not None:
        right = f"{report.accuracy:.2%} {percents(report.accuracy_interval)} of {report.count:,} images right"
        atomic_write(files.plot, draw_confusion_matrix(report, title=f"{about}: {right}"))
    terminal.say(f"figures in {files.out}" + ("" if files.plot is None else f", confusion matrix in {files.plot}"))
    pictures: list[str] = []
    if (picture := files.predictions.reliability) is not None:
        title = f"{about}: {report.count:,} images"
        atomic_write(picture, draw_reliability(predictions, labels, measured.reliability, title=title))
        pictures.append(f"reliability diagram in {picture}")
    if files.slices is not None and measured.sliced.slices:
        title = f"{about}: where is it worse than elsewhere?"
        atomic_write(files.slices, draw_slices(measured.sliced.slices, accuracy=report.accuracy, title=title))
        pictures.append(f"slices in {files.slices}")
    if files.corruptions is not None and robustness is not None:
        atomic_write(files.corruptions, draw_corruptions(robustness, report, title=f"{about}: accuracy under corruptions"))
        pictures.append(f"corruptions in {files.corruptions}")
    if pictures:
        terminal.say(", ".join(pictures))
    terminal.say(write_predictions(files.predictions, predictions, measured.found.images, checkpoint.classes))


if __name__ == "__main__":
    sys.exit(run_command("evaluate", main, sys.argv[1:]))
