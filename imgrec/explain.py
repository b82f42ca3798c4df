"""Why a network says what it says of images: python -m imgrec.explain ckpt=runs/NAME/ID images=FOLDER"""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from imgrec.config.compose import compose_config
from imgrec.config.schema import Device, MapMethod, MovedData, dotted_types, parse_settings
from imgrec.config.start_checks import check_gpu, check_moved, check_no_changes
from imgrec.data.file_index import pack_names
from imgrec.distributed.command import run_command
from imgrec.errors import ConfigError, DataError, ExitCode, plural, printable, shorten
from imgrec.files import atomic_write, on_progress
from imgrec.inference.explanation_files import OutputFiles, earlier_pictures, explanation_files
from imgrec.inference.prediction_table import PredictionRow, write_table
from imgrec.inference.stored_predictions import TABLES
from imgrec.paths import EXPLAINED, expand_files, find_checkpoint, name_run
from imgrec.report.measured import VALIDATION_TABLE, without_table
from imgrec.terminal import Terminal
from imgrec.training.stored_run import check_run

if TYPE_CHECKING:
    from torch import Tensor

    from imgrec.analysis.map_borders import Concentration
    from imgrec.inference.explanation_output import ExplainedImage
    from imgrec.inference.explanations import ExplainedMap, Explainer
    from imgrec.inference.predictor import Predictor
    from imgrec.inference.training_neighbours import Neighbour
    from imgrec.report.explained import RunImages
    from imgrec.report.facts import Facts

_AT_ONCE = 16  # images whose maps are computed together
_MOST_SHOWN = 30  # images whose verdicts are printed


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """The keys of conf/explain.yaml."""

    ckpt: str | None
    images: str | list[str] | None
    out: str | None
    method: MapMethod | Literal["both"]
    layer: str | None
    areas: int
    neighbours: int
    data: MovedData
    max_pixels: int | None
    batch_size: int
    num_workers: int | Literal["auto"]
    device: Device
    calibrated: bool
    overwrite: bool

    @property
    def methods(self) -> list[MapMethod]:
        return ["gradcam", "gradients"] if self.method == "both" else [self.method]


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Write the table and the pictures, and print the verdicts.

    A file that cannot be read has its reason in the table. DataError, after writing, where no file could be read.
    """
    composed = compose_config("explain", argv, config_dir, types=dotted_types(ExplainConfig))
    config = parse_settings(ExplainConfig, composed)
    ckpt = _check_settings(config)
    terminal = Terminal()
    with terminal.progress_shown():
        on_progress.get()("reading the network", 0, None)
        _explain_images(config, ckpt, terminal)
    return ExitCode.OK


def _explain_images(config: ExplainConfig, ckpt: Path, terminal: Terminal) -> None:
    facts, found = (None, None) if config.images is not None else _images_of_run(config)
    names = found.names if found is not None else expand_files(config.images or [], "images")
    files = explanation_files(config.out, names, run=None if facts is None else facts.folder, overwrite=config.overwrite)
    earlier = earlier_pictures(files.table)
    from imgrec.inference.checkpoint import load_checkpoint
    from imgrec.inference.explanation_output import failed_row, table_rows
    from imgrec.inference.explanations import check_maps
    from imgrec.inference.predictor import Predictor

    checkpoint = load_checkpoint(ckpt)
    if facts is not None and found is not None:
        from imgrec.report.explained import check_weights

        check_weights(facts, checkpoint)
        if not found.are_errors:
            terminal.say(f"every image {facts.measured.of} is right: these are those that the network was least certain of")
    predictor = Predictor(
        checkpoint, device=config.device, precision="32", calibrated=config.calibrated, max_pixels=config.max_pixels
    )
    check_maps(predictor, config.methods, config.layer)
    images, errors = (found.images, {}) if found is not None else _read_images(names, predictor)
    failed = [failed_row(name, reason) for name, reason in errors.items()]
    if not len(images):
        _write_rows(files.table, failed)
        name, reason = next(iter(errors.items()))
        raise DataError(
            f"none of {plural(len(names), 'file')} could be read: {name} {reason} {files.table} has the reason for each. Name image files."
        )
    readable = [name for name in names if name not in errors]
    true: Sequence[str | None] = [None] * len(readable) if found is None else found.true
    explained, explainer = _explain(config, predictor, images, readable, true, files, terminal)
    by_name = {one.path: table_rows(one, explainer) for one in explained} | {row["path"]: [row] for row in failed}
    _write_rows(files.table, [row for name in names for row in by_name[name]])
    for picture in earlier - set(files.pictures.values()):
        picture.unlink(missing_ok=True)
    _say_verdicts(terminal, explained, explainer, errors, files)
    concentrations = _find_concentrations(explainer, explained, None if found is None else found.sample, terminal)
    if facts is not None and found is not None:
        _add_to_report(facts, found, explained, explainer, concentrations, files, terminal)


def _check_settings(config: ExplainConfig) -> Path:
    """The checkpoint file."""
    if config.ckpt is None:
        raise ConfigError("ckpt=null: explain needs a checkpoint. Set ckpt=runs/NAME/ID, or a .ckpt file.")
    ckpt = find_checkpoint(config.ckpt)
    if config.images is None and not Path(config.ckpt).is_dir():
        raise ConfigError(
            f"images=null: the errors of a test are those of a run directory, and ckpt={config.ckpt} is none. "
            f"{name_run(ckpt, 'Set images=FOLDER.')}"
        )
    if config.images is None and config.max_pixels is not None:
        raise ConfigError(f"max_pixels={config.max_pixels} has no effect without images. Set images=FOLDER, or leave it out.")
    if config.images is None:
        check_run(run := Path(os.path.normpath(config.ckpt)), "ckpt")
        if not any((run / table).is_file() for table in (TABLES[0], VALIDATION_TABLE)):
            raise ConfigError(without_table(run))
    if config.layer is not None and "gradcam" not in config.methods:
        raise ConfigError(f"layer={config.layer} has no effect beside method=gradients. Leave it out.")
    if not config.neighbours:
        check_no_changes(asdict(config.data), "neighbours=0, which reads no training images")
    check_moved(config.data)
    check_gpu("device", config.device)
    return ckpt


def _images_of_run(config: ExplainConfig) -> tuple["Facts", "RunImages"]:
    """The run, and the worst errors of its test."""
    from imgrec.report.explained import read_run_images
    from imgrec.report.facts import read_run_facts

    facts = read_run_facts(Path(os.path.normpath(config.ckpt or "")))
    return facts, read_run_images(facts)


def _read_images(names: Sequence[str], predictor: "Predictor") -> tuple["Tensor", dict[str, str]]:
    """uint8 [N, C, S, S] of the files that can be read, and why the others cannot."""
    from imgrec.inference.device import check_memory
    from imgrec.inference.file_batches import FileBatches

    check_memory(len(names), predictor.preprocessing)
    batch = FileBatches(pack_names(names), predictor.preprocessing)[range(len(names))]
    found = zip(names, batch.errors, strict=True)
    return batch.images, {name: error.removeprefix(f"{name} ") for name, error in found if error is not None}


def _explain(
    config: ExplainConfig,
    predictor: "Predictor",
    images: "Tensor",
    names: Sequence[str],
    true: Sequence[str | None],
    files: OutputFiles,
    terminal: Terminal,
) -> tuple[list["ExplainedImage"], "Explainer"]:
    """Every image with its maps; their pictures are written. true: the classes of their labels, of a run's test."""
    from imgrec.inference.evaluation import evaluation_images
    from imgrec.inference.explanation_output import PICTURE_TILE, SHEET_IMAGES, ExplainedImage, draw_explanations
    from imgrec.inference.explanations import Explainer
    from imgrec.inference.training_neighbours import training_neighbours

    explainer = Explainer(predictor, images, methods=config.methods, layer=config.layer, areas=config.areas)
    near: list[list[Neighbour]] = [[] for _ in names]
    if config.neighbours:
        train = evaluation_images(predictor.checkpoint, split="train", folder=None, changes=asdict(config.data))
        near = training_neighbours(
            predictor, images, train.images, config.neighbours, batch_size=config.batch_size, num_workers=config.num_workers
        )
        if note := train.changes_note():
            terminal.say(note, style="yellow")
    explained: list[ExplainedImage] = []
    watch = partial(on_progress.get(), "maps", 1, len(names) * len(config.methods))
    for start in range(0, len(names), _AT_ONCE):
        found = explainer.explain(images[start : start + _AT_ONCE], batch_size=config.batch_size, watch=watch)
        for number, explanation in enumerate(found, start):
            picture = files.pictures[names[number]]
            one = ExplainedImage(names[number], picture.name, explanation, near[number], true[number])
            title = shorten(printable(picture.stem), 60)
            atomic_write(picture, draw_explanations([one], explainer, title=title, tile=PICTURE_TILE))
            explained.append(one)
    first = explained[:SHEET_IMAGES]
    title = f"{len(first)} of {plural(len(explained), 'image')}" if len(first) < len(explained) else plural(len(first), "image")
    atomic_write(files.sheet, draw_explanations(first, explainer, title=f"{title}: what the network looked at"))
    return explained, explainer


def _find_concentrations(
    explainer: "Explainer", explained: Sequence["ExplainedImage"], sample: "Tensor | None", terminal: Terminal
) -> list["Concentration"]:
    """Classes whose maps lie on the border or in a corner, printed; of a sample of a run's test, where there is one.

    By the gradients where there are any: the values of Grad-CAM are too large to lie in a corner.
    """
    import numpy as np
    import torch

    from imgrec.analysis.map_borders import find_concentrations, region_shares
    from imgrec.inference.explanation_output import concentration_sentence

    classes, labels = explainer.predictor.classes, [one.explanation.label for one in explained]
    if sample is None:
        shares = region_shares(torch.stack([one.explanation.maps[-1].values for one in explained]))
    else:
        parts, labels = [], []
        for part in torch.split(sample, _AT_ONCE):
            maps, own = explainer.maps(explainer.methods[-1], part)
            parts.append(region_shares(maps))
            labels += own
            on_progress.get()("maps of every class", len(part), len(sample))
        shares = np.concatenate(parts)
    found = find_concentrations(shares, labels)
    for one in found:
        terminal.say(concentration_sentence(classes[one.label], one._asdict()), style="yellow")
    return found


def _add_to_report(
    facts: "Facts",
    found: "RunImages",
    explained: Sequence["ExplainedImage"],
    explainer: "Explainer",
    concentrations: Sequence["Concentration"],
    files: OutputFiles,
    terminal: Terminal,
) -> None:
    from imgrec.report.explained import write_explained
    from imgrec.report.write import write_report

    if files.table.parent != facts.folder / EXPLAINED:
        return
    write_explained(files.table.parent, explained, found, explainer, concentrations)
    terminal.say(f"{write_report(facts.folder).page} shows them")


def _write_rows(path: Path, rows: Sequence[PredictionRow]) -> None:
    write_table(path, [{name: [row[name] for row in rows] for name in rows[0]}])


def _say_verdicts(
    terminal: Terminal, explained: Sequence["ExplainedImage"], explainer: "Explainer", errors: dict[str, str], files: OutputFiles
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from imgrec.inference.explanations import METHOD_NAMES

    classes = explainer.predictor.classes
    table = Table(box=box.SIMPLE_HEAD if terminal.console.is_terminal else None, pad_edge=False, show_edge=False)
    of_run = any(one.true is not None for one in explained)
    for name in ("file", *["true"] * of_run, "class", "probability", *(METHOD_NAMES[method] for method in explainer.methods)):
        table.add_column(name, overflow="fold", justify="right" if name == "probability" else "left")
    for one in explained[:_MOST_SHOWN]:
        said = one.explanation
        verdicts = [Text(_short_verdict(each), style="" if each.verdict.supported else "yellow") for each in said.maps]
        own = [Text(printable(one.true or ""))] * of_run
        answer = Text(printable(classes[said.label]), style="bold")
        table.add_row(Text(printable(one.path)), *own, answer, f"{said.probability:.4f}", *verdicts)
    terminal.say(table)
    if len(explained) > _MOST_SHOWN:
        terminal.say(f"and {plural(len(explained) - _MOST_SHOWN, 'other image')}")
    terminal.say()
    for place, method in enumerate(explainer.methods):
        count = sum(one.explanation.maps[place].verdict.supported for one in explained)
        terminal.say(
            f"{METHOD_NAMES[method]} of {explainer.layer_of(method)}: {count:,} of {plural(len(explained), 'map')} supported"
        )
    unread = f"; {plural(len(errors), 'file')} could not be read, the column 'error' says why" if errors else ""
    terminal.say(f"{files.table}, {files.sheet.name} and a picture of each image{unread}", style="yellow" if errors else None)


def _short_verdict(one: "ExplainedMap") -> str:
    hiding, similarity = one.verdict.hiding, one.verdict.similarity
    figures = "marks nothing" if hiding is None else f"p {hiding.p:.2g}" + ", no drop" * (hiding.drop <= 0)
    alike = f", alike {similarity:.2f}" if not one.verdict.has_changed else ""
    return f"{'supported' if one.verdict.supported else 'not supported'}, {figures}{alike}"


if __name__ == "__main__":
    sys.exit(run_command("explain", main, sys.argv[1:]))
