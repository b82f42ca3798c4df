"""The metrics of a checkpoint on any split, or on another folder: python -m imgrec.evaluate ckpt=runs/NAME/ID"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from imgrec.config.compose import compose_config
from imgrec.config.plain_data import read_mapping
from imgrec.config.schema import Device, MovedData, Precision, ProcessesConfig, Split, Views, dotted_types, parse_settings
from imgrec.config.start_checks import check_beside_folder, check_gpu, check_moved
from imgrec.config.stored_classes import check_class_folders, folder_classes, stored_classes
from imgrec.config.values import split_texts
from imgrec.data.corruption_names import corruption_names
from imgrec.distributed.command import run_command
from imgrec.distributed.process_group import on_first_rank
from imgrec.distributed.worker_group import WorkerGroup, worker_group
from imgrec.errors import ConfigError, DataError
from imgrec.files import begins_with, check_output, did_you_mean_path, is_our_png, resolved
from imgrec.inference.prediction_table import EvaluationFiles, check_prediction_files
from imgrec.inference.slice_names import BRIGHTNESS, check_slices
from imgrec.paths import CHECKPOINTS, find_checkpoint
from imgrec.terminal import Terminal

MARK = b'{\n "imgrec": "evaluate"'  # how our JSON begins


@dataclass(frozen=True)
class DataChanges(MovedData):
    """All keys of the run's data that may differ from those of the training; None: as in the run."""

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


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Measure, print the tables, write the files; of several processes each measures its share."""
    config = parse_settings(EvaluateConfig, compose_config("evaluate", argv, config_dir, types=dotted_types(EvaluateConfig)))
    with worker_group(config.trainer.timeout_s) as group:
        return _evaluate(config, on_first_rank(lambda: _check_files(config)), group)


def _check_files(config: EvaluateConfig) -> EvaluationFiles:
    """Each checked."""
    if config.ckpt is None:
        raise ConfigError("ckpt=null: evaluate needs a checkpoint. Set ckpt=runs/NAME/ID, or a .ckpt file.")
    file = find_checkpoint(config.ckpt)
    corruption_names(_names(config.corruptions))  # ConfigError for another word
    check_gpu("device", config.device)
    if config.folder is not None:
        check_beside_folder(asdict(config.data), config.folder)
    check_moved(config.data, download=config.data.download)
    if config.folder is not None and not Path(config.folder).is_dir():
        raise DataError(
            f"folder={config.folder} is no folder.{did_you_mean_path(config.folder, folder=True)} Set folder=FOLDER that holds CLASS/*.jpg."
        )
    if config.folder is not None:
        _check_classes(config.folder, file)
    what = config.split if config.folder is None else resolved(config.folder).name
    run_dir = file.parent.parent
    is_in_run = file.parent.name == CHECKPOINTS and (run_dir / "config.yaml").is_file()  # else it was moved out of its run
    _check_slices(config, run_dir / "config.yaml" if is_in_run else None)
    out = Path(config.out) if config.out else (run_dir if is_in_run else Path()) / f"evaluate_{what}.json"
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
    return EvaluationFiles(file, out, plot, slices, corruptions, predictions)


def _check_classes(folder: str, checkpoint: Path) -> None:
    """DataError for class folders that the run does not have, where its files say which it has."""
    of_run = checkpoint.parent.parent / "config.yaml"
    if (known := stored_classes(checkpoint)) is None or not of_run.is_file():
        return
    try:
        label_from = read_mapping(of_run, {"data": dict}, fix="")["data"].get("label_from")
    except DataError:  # the checkpoint has it too
        return
    if label_from is None:
        check_class_folders(folder, folder_classes(folder, known), known)


def _check_slices(config: EvaluateConfig, of_run: Path | None) -> None:
    """`check_slices`, where the config of the run says what its data is; else that is known when the data has been read."""
    if config.by is not None and config.folder is not None:
        check_slices(_names(config.by), None)
    elif config.by is not None and of_run is not None:
        changes = {key: value for key, value in asdict(config.data).items() if value is not None}
        data = read_mapping(of_run, {"data": dict}, fix="Name the checkpoint's file, or restore it.")["data"]
        check_slices(_names(config.by), data | changes)


def _names(value: str | list[str] | None) -> list[str]:
    """The names of A,B or [A,B], each once."""
    return list(dict.fromkeys(split_texts(value) if isinstance(value, str) else value or []))


def _evaluate(config: EvaluateConfig, files: EvaluationFiles, group: WorkerGroup) -> int:
    from imgrec.inference.checkpoint import load_checkpoint
    from imgrec.inference.corrupted_images import announce_corrupted, measure_corrupted
    from imgrec.inference.evaluation import at_image_size, evaluation_images
    from imgrec.inference.evaluation_output import Evaluated, say_evaluation, write_evaluation
    from imgrec.inference.image_facts import BrightnessCollector, read_slice_columns, slice_images
    from imgrec.inference.measure import measure_images
    from imgrec.inference.predictor import Predictor
    from imgrec.inference.reliability import measure_reliability
    from imgrec.inference.tta import mirror_note, preprocessing_for, read_as

    terminal = Terminal(quiet=group.rank > 0)
    group.set_status("reading the checkpoint and the data")
    checkpoint = at_image_size(load_checkpoint(files.ckpt), config.data.image_size)
    preprocessing = preprocessing_for(checkpoint, config.tta)
    found = evaluation_images(checkpoint, split=config.split, folder=config.folder, changes=asdict(config.data))
    found = found._replace(images=read_as(found.images, preprocessing))
    images, by = found.images, _names(config.by)
    columns, kinds = read_slice_columns(by, images, found.data), corruption_names(_names(config.corruptions))
    predictor = Predictor(
        checkpoint, device=config.device, precision=config.precision, calibrated=config.calibrated, tta=config.tta
    )
    where = f"folder {config.folder}" if config.folder else f"{config.split} split"
    how = f"{predictor.device}, precision {predictor.precision}{f', {group.size} processes' * (group.size > 1)}"
    terminal.say(
        f"{files.ckpt} (epoch {checkpoint.content['epoch'] + 1}) on the {where}: {len(images):,} image{'s' * (len(images) != 1)}; {how}"
    )
    if note := mirror_note(checkpoint, config.tta):
        terminal.say(note, style="yellow")
    if note := found.changes_note():
        terminal.say(note, style="yellow")
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
    measured = Evaluated(predictor, found, where, report, predictions, bad, reliability, sliced, robustness, group.size, seconds)
    say_evaluation(measured, terminal)
    write_evaluation(measured, files, terminal, {"split": None if config.folder else config.split, "folder": config.folder})
    return 0


if __name__ == "__main__":
    sys.exit(run_command("evaluate", main, sys.argv[1:]))
