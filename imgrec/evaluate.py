"""Figures of a checkpoint on any split, or on another folder: python -m imgrec.evaluate ckpt=runs/NAME/ID"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from imgrec import config
from imgrec.crew import Crew, gathered, shares
from imgrec.errors import ConfigError, DataError
from imgrec.files import check_out, quoted, replace, show
from imgrec.processes import agreed, world
from imgrec.rundir import find

if TYPE_CHECKING:
    from torch import Tensor

    from imgrec.checkpoint import Stored
    from imgrec.data.decode import Preprocessing
    from imgrec.data.folder import BadImage
    from imgrec.data.stored import ImageSet
    from imgrec.metrics import Report
    from imgrec.recognizer import Recognizer

Split = Literal["test", "val", "train"]
MOST_CLASSES = 20  # lines of the table per class, and of the confusion matrix on a terminal
MARK = '{\n "imgrec": "evaluate"'  # how our JSON begins


@dataclass(frozen=True, kw_only=True)
class Query:
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
    words = quoted(argv, ("ckpt", "folder", "data.root", "out", "plot", "precision"))
    query = config.settings(Query, config.compose("evaluate", words, config_dir))
    if query.ckpt is None:
        raise ConfigError("ckpt=null: evaluate needs a checkpoint. Set ckpt=runs/NAME/ID, or a .ckpt file.")
    with gathered(query.trainer["timeout_s"]) as crew:
        return _evaluate(query, *agreed(lambda: _checked(query)), crew)


def _checked(query: Query) -> tuple[Path, Path, Path | None]:
    """The checkpoint's file, the .json and the picture."""
    assert query.ckpt is not None
    file = find(query.ckpt)
    if query.folder is not None and not Path(query.folder).is_dir():
        raise DataError(f"folder={query.folder} is no folder. Name a folder that holds CLASS/*.jpg.")
    what = query.split if query.folder is None else Path(query.folder).resolve().name
    out = Path(query.out) if query.out else _beside(file) / f"evaluate_{what}.json"
    plot = None if query.plot == "none" else Path(query.plot) if query.plot else out.with_suffix(".png")
    check_out("out", out, (".json",), ours=_ours, overwrite=query.overwrite)
    if plot is not None:
        check_out("plot", plot, (".png",), ours=_our_picture, overwrite=query.overwrite)
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


def _evaluate(query: Query, file: Path, out: Path, plot: Path | None, crew: Crew) -> int:
    from imgrec.checkpoint import load_run, versions
    from imgrec.confusion import draw, table
    from imgrec.metrics import render_table
    from imgrec.recognizer import Recognizer
    from imgrec.screen import Screen
    from imgrec.story import quieten

    quieten()
    screen = Screen(quiet=crew.rank > 0)
    crew.do("reading the checkpoint and the data")
    stored = load_run(file)
    recognizer = Recognizer(stored, device=query.device, precision=query.precision)
    images, counts = pictures(stored, split=query.split, folder=query.folder, changes=query.data)
    what = f"folder {show(query.folder)}" if query.folder else f"{query.split} split"
    where = f"{recognizer.device}, precision {recognizer.precision}{f', {crew.size} processes' * (crew.size > 1)}"
    screen.say(
        f"{file} (epoch {stored.checkpoint['epoch'] + 1}) on the {what}: {len(images):,} image{'s' * (len(images) != 1)}; {where}"
    )
    start = time.perf_counter()
    with screen.bar() as bar:
        task = bar.add_task("images", total=None, note="")
        found, bad = measure(
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
    render_table(found, screen.console, most=MOST_CLASSES)
    screen.say()
    screen.say(table(found, width=screen.console.width, most=MOST_CLASSES))
    screen.say()
    if bad:
        first = ", ".join(map(show, bad[:3])) + (", ..." if len(bad) > 3 else "")
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
        "versions": versions(),
    }
    replace(out, json.dumps(content, indent=1).encode())
    if plot is not None:
        replace(plot, draw(found, title=f"{stored.run.name}, {what}: {found.accuracy:.2%} of {found.count:,} images right"))
    screen.say(f"figures in {show(str(out))}" + ("" if plot is None else f", confusion matrix in {show(str(plot))}"))
    return 0


def pictures(stored: "Stored", *, split: Split, folder: str | None, changes: config.Node) -> "tuple[ImageSet, Tensor | None]":
    """The images to measure on, and the training counts per class (int64 [K]), which class weights follow; None for a folder.

    `changes` replace keys of the stored data config; those that are None do not. ConfigError for a key that the set does not
    have, DataError for classes that are not the checkpoint's.
    """
    import torch

    from imgrec.annotations import describe, matches
    from imgrec.data.folder import ImageFolder, folder_split
    from imgrec.target import build, locate, parameters

    changes = {key: value for key, value in changes.items() if value is not None}
    takes = parameters(ImageFolder if folder is not None else locate(stored.run.data["_target_"]))
    name = stored.run.data["_target_"].rpartition(".")[2]
    for key, value in changes.items():
        if folder is not None and key != "on_bad_image_eval":
            raise ConfigError(f"data.{key}={value} has no effect beside folder={folder}. Leave one of them out.")
        if key not in takes:
            raise ConfigError(f"data.{key}={value} has no effect: the run's data, {name}, has no such key. Leave it out.")
        if not matches(value, takes[key]):
            raise ConfigError(f"data.{key}={value}: {key} takes {describe(takes[key])}.")
    if folder is not None:
        bad = cast("BadImage", ({"on_bad_image_eval": "refuse"} | stored.run.data | changes)["on_bad_image_eval"])
        preprocessing = cast("Preprocessing", stored.preprocessing)
        return folder_split(folder, stored.classes, preprocessing, on_bad_image=bad, on_bad_image_eval=bad), None
    data = build(stored.run.data, **changes)
    data.num_classes = None  # compared by name below, not by number
    data.setup()
    if data.classes != stored.classes:
        raise DataError(_other_classes(stored, data.classes, name))
    return data.split(split), torch.from_numpy(data.counts("train"))


def _other_classes(stored: "Stored", found: tuple[str, ...], name: str) -> str:
    where = stored.run.data.get("root", name)
    new, gone = sorted(set(found) - set(stored.classes)), sorted(set(stored.classes) - set(found))
    parts = [
        f"{what} {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for what, names in (("new:", new), ("gone:", gone)) if names
    ]
    return (
        f"{where} has {len(found)} classes now, but the checkpoint was trained on {len(stored.classes)} "
        f"({'; '.join(parts) or 'in another order'}). Set data.root=FOLDER as it was, or folder=DIR to measure on DIR/CLASS/*."
    )


def measure(
    recognizer: "Recognizer",
    images: "ImageSet",
    counts: "Tensor | None",
    *,
    batch_size: int | None,
    num_workers: int | Literal["auto"],
    crew: Crew,
    watch: Callable[[int, int], None] = lambda done, of: None,
) -> "tuple[Report, list[str]]":
    """The report of the checkpoint on `images`, and paths of what could not be read (on_bad_image_eval: skip).

    The same steps as the test at the end of training, so the same figures. Each process of the crew measures its share, all must call it, and all get
    the whole. `watch` is told how many of this process' images are done, after each batch, and how many there are.
    """
    import numpy as np
    import torch

    from imgrec.data.folder import Files
    from imgrec.data.loader import Loader, workers
    from imgrec.data.module import EVALUATION_BATCH
    from imgrec.data.order import EpochBatches
    from imgrec.recognizer import weighted_loss

    found = crew.everywhere(len(images))
    if len(set(found)) > 1:
        raise DataError(f"the processes found {min(found)} to {max(found)} images. Give all machines the same files.")
    size = batch_size or min(EVALUATION_BATCH, recognizer.stored.run.max_device_batch)
    share = shares(len(images), size, crew.size)[crew.rank]
    requests = EpochBatches(
        samples=len(share),
        order=lambda epoch: np.arange(share.start, share.stop),
        epoch=lambda: 0,
        batch_size=size,
        devices=1,
        rank=0,
        accumulate=1,
        keep_single=True,
    )
    count = workers(num_workers, in_memory=not isinstance(images, Files), processes_here=world().local_size)
    classifier, device = recognizer.classifier, recognizer.device
    classifier.loss = weighted_loss(recognizer.stored, counts).to(device)
    tally = classifier.tally.to(device)
    tally.reset()
    with torch.inference_mode():  # a process without images has none to add, and compute() warns of a metric without any update
        tally.update(
            torch.zeros(0, len(recognizer.classes), device=device),
            torch.zeros(0, dtype=torch.int64, device=device),
            torch.zeros(0, device=device),
        )
    bad: list[str] = []
    done = 0
    for number, batch in enumerate(Loader(images, requests, num_workers=count)):
        crew.do(f"measuring batch {number + 1} of {len(requests)}")
        bad += batch.bad
        if len(batch.labels):
            with recognizer.inference(size):
                moved = batch._replace(images=batch.images.to(device), labels=batch.labels.to(device))
                classifier.test_step(moved, number)
        done += len(batch.labels) + len(batch.bad)
        watch(done, len(share))
    bad = [path for part in crew.everywhere(bad) for path in part]
    if len(bad) == len(images):
        raise DataError(f"none of {len(images)} images could be read; the first is {bad[0]}. Name a folder of whole images.")
    if crew.group is not None:
        tally.cpu()  # its group is gloo's
    classifier.on_test_epoch_end()
    assert classifier.test_report is not None
    return classifier.test_report, bad


if __name__ == "__main__":
    from imgrec.cli import main as cli

    sys.exit(cli(["evaluate", *sys.argv[1:]]))
