"""Classes and probabilities of image files: python -m imgrec.predict ckpt=runs/NAME/ID files=FOLDER"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from imgrec.config.answers import AnswerSettings, check_answers
from imgrec.config.compose import compose_config
from imgrec.config.schema import ProcessesConfig, dotted_types, parse_settings
from imgrec.config.start_checks import check_gpu
from imgrec.distributed.command import run_command
from imgrec.distributed.process_group import on_first_rank
from imgrec.distributed.worker_group import WorkerGroup, worker_group
from imgrec.errors import ConfigError, DataError, printable
from imgrec.files import check_output, is_our_table
from imgrec.inference import prediction_table
from imgrec.paths import expand_files, find_checkpoint
from imgrec.terminal import Terminal

if TYPE_CHECKING:
    from imgrec.inference.predictor import Prediction

NONE = "none of these"  # where answers would be wrong more often than risk=
MOST_SHOWN = 50  # files whose rows are printed too


@dataclass(frozen=True, kw_only=True)
class PredictConfig(AnswerSettings):
    """The further keys of conf/predict.yaml."""

    files: str | list[str] | None
    out: str
    max_pixels: int | None
    num_workers: int | Literal["auto"]
    trainer: ProcessesConfig
    overwrite: bool


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Predict and write the table; of several processes each reads its share of the files.

    A file that cannot be read has its reason in the table. DataError, after writing, where no file could be read.
    """
    config = parse_settings(PredictConfig, compose_config("predict", argv, config_dir, types=dotted_types(PredictConfig)))
    check_answers(coverage=config.coverage, risk=config.risk, calibrated=config.calibrated, tta=config.tta)
    files: list[str] = []  # on the first process
    with worker_group(config.trainer.timeout_s) as group:
        group.set_status("reading the names of the files")
        ckpt = on_first_rank(lambda: _check_files(config, files))
        return _predict(config, ckpt, files, group)


def _check_files(config: PredictConfig, files: list[str]) -> Path:
    """The checkpoint file; the names of the images are appended to `files`."""
    if config.ckpt is None:
        raise ConfigError("ckpt=null: predict needs a checkpoint. Set ckpt=runs/NAME/ID, or a .ckpt file.")
    ckpt = find_checkpoint(config.ckpt)
    if config.files is None:
        raise ConfigError("files=null: predict needs images. Set files=FOLDER, FILE, a pattern in quotes or [a.jpg,b.jpg].")
    out = Path(config.out)
    check_gpu("device", config.device)
    files += expand_files(config.files)
    check_output("out", out, prediction_table.SUFFIXES, ours=is_our_table, overwrite=config.overwrite)
    return ckpt


def _predict(config: PredictConfig, ckpt: Path, files: list[str], group: WorkerGroup) -> int:
    from imgrec.inference.answer_settings import build_predictor
    from imgrec.inference.checkpoint import load_checkpoint
    from imgrec.inference.tta import mirror_note

    terminal = Terminal(quiet=group.rank > 0)
    group.set_status("reading the checkpoint")
    checkpoint = load_checkpoint(ckpt)
    predictor, guarantee = build_predictor(checkpoint, config, max_pixels=config.max_pixels)
    if note := mirror_note(checkpoint, config.tta):
        terminal.say(note, style="yellow")
    top_k = min(config.top_k, len(predictor.classes))
    start = time.perf_counter()
    mine, parts = group.scatter(files, config.batch_size)
    group.set_status("predicting")
    rows: list[prediction_table.PredictionRow] = []
    with terminal.bar() as bar:
        task = bar.add_task("images", total=len(files), note="")
        predictions = predictor.predict_files(
            mine,
            top_k=top_k,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            timeout_s=group.alone_timeout_s,
            guarantee=guarantee,
        )
        each = zip(mine, predictions, strict=True)
        for part in parts:
            own: list[prediction_table.PredictionRow] = []
            for path, prediction in islice(each, part):
                own.append(_row(config, path, prediction, top_k))
                group.set_status(f"predicting, {len(own)} of {part} files done")
                bar.advance(task)
            rows += group.gather(own)
            bar.update(task, completed=len(rows))
    if group.rank > 0:
        return 0
    group.set_status("writing the table")
    out = Path(config.out)
    columns = prediction_table.column_names(top_k, added=_added(config))
    prediction_table.write_table(out, [{name: [row[name] for row in rows] for name in columns}])
    _say(terminal, rows, _added(config), top_k, out, time.perf_counter() - start)
    bad = [row for row in rows if row["error"]]
    if len(bad) == len(rows):
        first = f"{bad[0]['path']} {bad[0]['error']}"
        raise DataError(
            f"none of {len(rows):,} file{'s' * (len(rows) != 1)} could be read: {first} {out} has the reason for each. Name image files."
        )
    return 0


def _added(config: PredictConfig) -> list[str]:
    """The column that a guarantee adds."""
    return [prediction_table.SET] if config.coverage is not None else [prediction_table.ANSWER] if config.risk is not None else []


def _row(config: PredictConfig, path: str, prediction: "Prediction | DataError", top_k: int) -> prediction_table.PredictionRow:
    added = dict.fromkeys(_added(config))
    if isinstance(prediction, DataError):
        error = str(prediction).removeprefix(f"{path} ")
        return prediction_table.prediction_row(path, [], top_k=top_k, added=added, error=error)
    if prediction_table.ANSWER in added:
        added[prediction_table.ANSWER] = prediction.class_name if prediction.answered else NONE
    elif prediction_table.SET in added:
        added[prediction_table.SET] = prediction.classes
    return prediction_table.prediction_row(path, prediction.top, top_k=top_k, added=added)


def _say(
    terminal: Terminal, rows: list[prediction_table.PredictionRow], added: list[str], top_k: int, out: Path, seconds: float
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if len(rows) <= MOST_SHOWN:
        table = Table(box=box.SIMPLE_HEAD if terminal.console.is_terminal else None, pad_edge=False, show_edge=False)
        parent = _parent([row["path"] for row in rows])
        if parent:
            terminal.say(f"in {parent}:")
        table.add_column("file", overflow="fold")
        table.add_column("class", overflow="fold")
        table.add_column("probability", justify="right")
        table.add_column(added[0] if added else "then" if top_k > 1 else "", overflow="fold")
        for row in rows:
            # printable, before the width of a column is measured: a letter without a width becomes '?'
            name = Text(printable(os.path.relpath(row["path"], parent) if parent else row["path"]))
            if row["error"]:
                table.add_row(name, Text("-"), Text("-"), Text(row["error"], style="yellow"))
            else:
                last = (
                    _cell_text(row[added[0]])
                    if added
                    else ", ".join(f"{row[f'class_{k}']} {row[f'probability_{k}']:.4f}" for k in range(2, top_k + 1))
                )
                table.add_row(
                    name, Text(printable(row["class"]), style="bold"), f"{row['probability']:.4f}", Text(printable(last))
                )
        terminal.say(table)
        terminal.say()
    bad = sum(row["error"] is not None for row in rows)
    unread = f"; {bad:,} of them could not be read, the column 'error' says why" if bad else ""
    pace = f" ({len(rows) / seconds:,.0f} a second)" if len(rows) > MOST_SHOWN else ""
    if said := _describe_added(rows, added):
        terminal.say(said)
    terminal.say(
        f"{len(rows):,} file{'' if len(rows) == 1 else 's'}{pace} in {out}{unread}",
        style="yellow" if bad else None,
    )


def _cell_text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value) or "-"


def _describe_added(rows: list[prediction_table.PredictionRow], added: list[str]) -> str | None:
    """What the column that a guarantee added holds, in one line."""
    values = [row[added[0]] for row in rows if not row["error"]] if added else []
    if not values:
        return None
    if added == [prediction_table.ANSWER]:
        return f"{sum(value != NONE for value in values):,} of {len(values):,} answered"
    sizes = [len(value) for value in values]
    return f"{sum(sizes) / len(sizes):.2f} classes in a set on average; {sizes.count(1):,} of {len(sizes):,} sets have one, {sizes.count(0):,} none"


def _parent(paths: list[str]) -> str:
    """The folder that several files share; nothing for one file, or where there is none."""
    if len(paths) == 1 or len(set(map(os.path.isabs, paths))) > 1:
        return ""
    return os.path.commonpath(list(map(os.path.dirname, paths)))


if __name__ == "__main__":
    sys.exit(run_command("predict", main, sys.argv[1:]))
