"""Figures of a checkpoint on any split, or on another folder: python -m imgrec.evaluate ckpt=runs/NAME/ID"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imgrec.config.compose import compose_config, quote_values
from imgrec.config.schema import parse_settings
from imgrec.distributed.process_group import on_first_rank
from imgrec.distributed.worker_group import WorkerGroup, worker_group
from imgrec.errors import ConfigError, DataError
from imgrec.files import atomic_write
from imgrec.inference.evaluation import Split, evaluation_images, measure_split
from imgrec.inference.paths import check_output, find_checkpoint
from imgrec.terminal import printable

MOST_CLASSES = 20  # lines of the table per class, and of the confusion matrix on a terminal
MARK = '{\n "imgrec": "evaluate"'  # how our JSON begins


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The keys of conf/evaluate.yaml."""

    ckpt: str | None
    split: Split
    folder: str | None
    data: dict[str, Any]
    batch_size: int | None
    num_workers: int | Literal["auto"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["32", "bf16-mixed", "16-mixed"] | None
    trainer: dict[str, Any]
    out: str | None
    plot: str | None
    overwrite: bool


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Measure, print the tables, write JSON and picture; on several processes each measures its share."""
    words = quote_values(argv, ("ckpt", "folder", "data.root", "out", "plot", "precision"))
    query = parse_settings(EvaluateConfig, compose_config("evaluate", words, config_dir))
    if query.ckpt is None:
        raise ConfigError("ckpt=null: evaluate needs a checkpoint. Set ckpt=runs/NAME/ID, or a .ckpt file.")
    with worker_group(query.trainer["timeout_s"]) as crew:
        return _evaluate(query, *on_first_rank(lambda: _checked(query)), crew)


def _checked(query: EvaluateConfig) -> tuple[Path, Path, Path | None]:
    """The checkpoint's file, the .json and the picture."""
    assert query.ckpt is not None
    file = find_checkpoint(query.ckpt)
    if query.folder is not None and not Path(query.folder).is_dir():
        raise DataError(f"folder={query.folder} is no folder. Name a folder that holds CLASS/*.jpg.")
    what = query.split if query.folder is None else Path(query.folder).resolve().name
    out = Path(query.out) if query.out else _beside(file) / f"evaluate_{what}.json"
    plot = None if query.plot == "none" else Path(query.plot) if query.plot else out.with_suffix(".png")
    check_output("out", out, (".json",), ours=_ours, overwrite=query.overwrite)
    if plot is not None:
        check_output("plot", plot, (".png",), ours=_our_picture, overwrite=query.overwrite)
    return file, out, plot


def _beside(file: Path) -> Path:
    """The run folder of a checkpoint; the current one where it has left its run."""
    folder = file.parent.parent
    return folder if file.parent.name == "checkpoints" and (folder / "config.yaml").is_file() else Path()


def _ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK.encode()


def _our_picture(path: Path) -> bool:
    with path.open("rb") as file:
        return b"Software\0imgrec" in file.read(256)


def _evaluate(query: EvaluateConfig, file: Path, out: Path, plot: Path | None, crew: WorkerGroup) -> int:
    from imgrec.inference.checkpoint import load_checkpoint, package_versions
    from imgrec.inference.confusion_matrix import confusion_table, draw_confusion_matrix
    from imgrec.inference.metrics import print_report
    from imgrec.inference.predictor import Predictor
    from imgrec.terminal import Terminal
    from imgrec.training.lightning_compat import silence_known_warnings

    silence_known_warnings()
    screen = Terminal(quiet=crew.rank > 0)
    crew.do("reading the checkpoint and the data")
    stored = load_checkpoint(file)
    recognizer = Predictor(stored, device=query.device, precision=query.precision)
    images, counts = evaluation_images(stored, split=query.split, folder=query.folder, changes=query.data)
    what = f"folder {printable(query.folder)}" if query.folder else f"{query.split} split"
    where = f"{recognizer.device}, precision {recognizer.precision}{f', {crew.size} processes' * (crew.size > 1)}"
    screen.say(
        f"{file} (epoch {stored.checkpoint['epoch'] + 1}) on the {what}: {len(images):,} image{'s' * (len(images) != 1)}; {where}"
    )
    start = time.perf_counter()
    with screen.bar() as bar:
        task = bar.add_task("images", total=None, note="")
        found, bad = measure_split(
            recognizer,
            images,
            counts,
            batch_size=query.batch_size,
            num_workers=query.num_workers,
            crew=crew,
            watch=lambda done, of: bar.update(task, completed=done, total=of),
        )
    if crew.rank > 0:
        return 0
    crew.do("writing the figures")
    seconds = time.perf_counter() - start
    screen.say()
    print_report(found, screen.console, most=MOST_CLASSES)
    screen.say()
    screen.say(confusion_table(found, width=screen.console.width, most=MOST_CLASSES))
    screen.say()
    if bad:
        first = ", ".join(map(printable, bad[:3])) + (", ..." if len(bad) > 3 else "")
        left = "image could not be read and is" if len(bad) == 1 else "images could not be read and are"
        screen.say(f"{len(bad):,} {left} left out: {first}", style="yellow")
    if counts is None and stored.run.loss.get("class_weights") == "balanced":
        screen.say(
            "The loss counts every image alike: class weights follow the training counts, which are not read for a folder."
        )
    content = {
        "imgrec": "evaluate",
        "checkpoint": str(file),
        "split": query.split if query.folder is None else None,
        "folder": query.folder,
        "figures": found.to_dict(),
        "unread_images": bad,
        "device": str(recognizer.device),
        "precision": recognizer.precision,
        "processes": crew.size,
        "seconds": round(seconds, 2),
        "versions": package_versions(),
    }
    atomic_write(out, json.dumps(content, indent=1).encode())
    if plot is not None:
        atomic_write(
            plot,
            draw_confusion_matrix(
                found, title=f"{stored.run.name}, {what}: {found.accuracy:.2%} of {found.count:,} images right"
            ),
        )
    screen.say(f"figures in {printable(str(out))}" + ("" if plot is None else f", confusion matrix in {printable(str(plot))}"))
    return 0


if __name__ == "__main__":
    from imgrec.cli import main as cli

    sys.exit(cli(["evaluate", *sys.argv[1:]]))
