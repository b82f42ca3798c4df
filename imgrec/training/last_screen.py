"""The end of a training: the files of the test, result.json, the report, and the last screen."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgrec.data.folder import ImageFiles
from imgrec.data.image_data import ImageData
from imgrec.errors import ImgrecError, first_line, plural
from imgrec.inference.metrics import Report, worst_classes
from imgrec.inference.split_predictions import write_predictions
from imgrec.terminal import Terminal, duration, percent, percents
from imgrec.training.calibrate import calibration_sentence
from imgrec.training.extension import extension_lines
from imgrec.training.final_test import Tests
from imgrec.training.run_dir import RunDir

WORST = 3  # classes printed at the end


def finish_run(
    run_dir: RunDir,
    terminal: Terminal,
    result: dict[str, Any],
    tests: Tests,
    data: ImageData,
    log: Callable[[], None],
    report: Callable[[], object] | None,
) -> None:
    """Write the files of the test, `log` the result, and then write result.json, with which the run is finished; print the result.

    report: writes report.html; the run is finished also where that fails.
    """
    files = tests.predictions and write_predictions(run_dir.prediction_files, tests.predictions, data.split("test"), data.classes)
    log()
    run_dir.record(result)
    said = None if report is None else write_or_say(run_dir.path, report)
    print_result(terminal, run_dir.path, result, tests.report, files, find_unseen(data), said)


def find_unseen(data: ImageData) -> str | None:
    """A folder or an image file that was not trained on; None of sets in memory and in shards."""
    images = data.splits.test or data.splits.val
    path = images.path(0) if isinstance(images, ImageFiles) and len(images) else ""
    return data.splits.unlabelled or (path if os.path.isfile(path) else None)


def write_or_say(folder: Path, write: Callable[[], object]) -> str:
    """Write the report, and say where it is or why there is none."""
    try:
        write()
    except Exception as error:  # whatever it is, the run is finished and its figures are wanted
        reason = first_line(error) if isinstance(error, ImgrecError) else f"{type(error).__name__}: {first_line(error)}"
        return f"no report.html was written: {reason}. Type imgrec report {shlex.quote(str(folder))}"
    return f"report in {folder / 'report.html'}"


def print_result(
    terminal: Terminal,
    run_dir: Path,
    result: dict[str, Any],
    report: Report | None,
    files: str | None,
    to_predict: str | None,
    written: str | None = None,
) -> None:
    """Print the result, of the classes with errors those with the lowest F1, the files of the test, and the next commands.

    to_predict: a folder or an image, None where there is none; written: what `write_or_say` says.
    """
    terminal.say()
    terminal.say(result["summary"], style="bold green", wrap=True)
    if report is not None:
        for row in [row for row in worst_classes(report, len(report.per_class)) if row["recall"] < 1][:WORST]:
            recall = f"recall {percent(row['recall'])} {percents(row['recall_interval'])} of {plural(row['support'], 'image')}"
            metrics = f"F1 {percent(row['f1'])}, {recall}, precision {percent(row['precision'])}"
            terminal.say(f"  weakest: {row['name']}  {metrics}{_confused(report, row['name'])}", wrap=True)
    if (extended := result["extended"]) is not None:
        for line in extension_lines(extended):
            terminal.say(f"  {line}", wrap=True)
    terminal.say(calibration_sentence(result["calibration"]))
    if files:
        terminal.say(files)
    terminal.say(f"{duration(result['train_seconds'])} of training; results in {run_dir}")
    if written:
        terminal.say(written)
    if result["held_back"]:
        terminal.say(result["held_back"], style="yellow")
    for finding in result["diagnosis"]:
        terminal.say(finding["sentence"], style="yellow")
    terminal.say("next:")
    path, split = shlex.quote(str(run_dir)), "" if report is not None else " split=val"
    image = None if to_predict is None else f" {shlex.quote(to_predict)}"
    explained = image if files is None else ""  # by default the errors of its test
    commands = {
        f"imgrec predict {path}{image}": image is not None,
        f"imgrec evaluate {path}{split}": True,
        f"imgrec report {path}": report is None and written,  # which then is answered by validation
        f"imgrec explain {path}{explained}": explained is not None,
        f"imgrec export {path}": True,
        f"imgrec serve {path}": True,
        f"tensorboard --logdir {shlex.quote(str(run_dir.parent.parent))}": (run_dir / "tensorboard").is_dir(),
    }
    for command, can_be_typed in commands.items():
        if can_be_typed:
            terminal.say(f"  {command}")


def _confused(report: Report, name: str) -> str:
    names = [row["name"] for row in report.per_class]
    counts = list(report.confusion[names.index(name)])
    counts[names.index(name)] = 0
    return f", most often predicted as {names[counts.index(max(counts))]}"
