"""What a training says before the first epoch and after the last one, and the result.json that stays."""

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.table import Table

from imgrec.config.schema import RunConfig
from imgrec.data.datamodule import ImageData, Split
from imgrec.data.sampler import BatchPlan
from imgrec.files import atomic_write
from imgrec.inference.checkpoint import package_versions, read_checkpoint
from imgrec.inference.metrics import Report, worst_classes
from imgrec.models.summary import ModelSize
from imgrec.terminal import Terminal, duration, percent
from imgrec.training.callbacks.history import History
from imgrec.training.module import Classifier
from imgrec.training.optimizer import rate_sentence
from imgrec.training.run_dir import RunDir

WORST = 3  # classes named at the end
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def start_screen(
    run: RunConfig,
    folder: RunDir,
    trainer: pl.Trainer,
    data: ImageData,
    plan: BatchPlan,
    size: ModelSize,
    taken: str | None,
    resume: Path | None,
    done: int,
) -> Table:
    """The start screen: device, data, network, batch and rate, run folder."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    shape = f"{run.data['image_size']}x{run.data['image_size']}x{run.data['channels']}"
    counts = {split: data.counts(split) for split in SPLITS}
    least, most = counts["train"].min(), counts["train"].max()
    splits = ", ".join(f"{split} {found.sum():,}" for split, found in counts.items() if found.any())
    per_class = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    steps = plan.steps_per_epoch * run.epochs
    rows = {
        "run": f"{folder.path}{'' if resume is None else f' (goes on from {resume.name}, after {done:,} steps)'}",
        "device": describe_device(trainer, run),
        "data": f"{_name(run.data)}: {splits} images of {shape}, {len(data.classes)} classes with {per_class} in train"
        + ("" if run.sampling == "shuffle" else f", drawn sampling={run.sampling}"),
        "network": f"{_name(run.model)}{_brief(run.model)}: {size.parameters:,} parameters, {size.flops / 1e6:,.1f} MFLOPs an image",
        "batch": f"{plan}; {plan.steps_per_epoch:,} steps an epoch, {steps:,} in {run.epochs} epochs",
        "rate": f"{_name(run.optim)} {rate_sentence(run.optim, plan.global_size)}, {_name(run.scheduler)} with {run.scheduler.get('warmup_share', 0):.0%} warm-up",
        "loader": f"{data.workers} worker processes" if data.workers else "in this process, the set is held in memory",
    }
    if taken:
        rows["weights"] = taken
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def describe_device(trainer: pl.Trainer, run: RunConfig) -> str:
    """'2 x NVIDIA H200, bf16-mixed' or 'cpu with 2 threads, precision 32'."""
    root = trainer.strategy.root_device
    name = (
        torch.cuda.get_device_name(root)
        if root.type == "cuda"
        else f"{root.type} with {torch.get_num_threads()} threads"
        if root.type == "cpu"
        else root.type
    )
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    return f"{count}{name}, precision {run.trainer['precision']}"


def _name(node: dict[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _brief(node: dict[str, Any]) -> str:
    shown = [f"{key}={node[key]}" for key in ("name", "depth", "stem", "head") if key in node]
    return f" ({', '.join(shown)})" if shown else ""


def finish_run(
    run: RunConfig,
    folder: RunDir,
    screen: Terminal,
    trainer: pl.Trainer,
    classifier: Classifier,
    data: ImageData,
    history: History,
    size: ModelSize,
    argv: Sequence[str],
) -> dict[str, Any]:
    """Test the best checkpoint, write result.json, say the figures and what to type next."""
    best, last = history.best(), history.rows[-1]
    classifier.load_state_dict(read_checkpoint(folder.best if folder.best.exists() else folder.last)["state_dict"])
    found = None
    if data.counts("test").any():
        trainer.test(classifier, datamodule=data, verbose=False)
        found = classifier.test_report
        assert found is not None
    seconds = sum(row.get("seconds", 0.0) for row in history.rows)  # the first process measures
    result = {
        "summary": result_sentence(found, best or last, run),
        "status": "finished",
        "name": run.name,
        "command": command_line(argv),
        "seed": run.seed,
        "best": best,
        "last": last,
        "test": None if found is None else found.to_dict(),
        "left_out": data.bad_images(),
        "train_seconds": round(seconds, 2),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": describe_device(trainer, run),
        "parameters": size.parameters,
        "flops": size.flops,
        "versions": package_versions(),
    }
    if trainer.is_global_zero:
        atomic_write(folder.path / "result.json", json.dumps(result, indent=1))
        _say_end(screen, folder, result, found, seconds)
    return result


def command_line(argv: Sequence[str]) -> str:
    """A command line as it can be typed again."""
    script = Path(argv[0])
    start = ["python", "-m", "imgrec.train"] if script.parts[-2:] == ("imgrec", "train.py") else [script.name]
    return shlex.join([*start, *argv[1:]])


def result_sentence(found: Report | None, row: dict[str, Any], run: RunConfig) -> str:
    """The result in a line."""
    where = f"best epoch {row['epoch']} by {run.monitor}"
    if found is None:
        return f"validation accuracy {percent(row['val/accuracy'])} ({where}; there is no test split)"
    top5 = "" if found.top5 is None else f", top-5 {percent(found.top5)}"
    return f"test accuracy {percent(found.accuracy)}{top5}, macro F1 {percent(found.macro_f1)}, loss {found.loss:.4f} on {found.count:,} images ({where})"


def _say_end(screen: Terminal, folder: RunDir, result: dict[str, Any], found: Report | None, seconds: float) -> None:
    screen.say()
    screen.say(result["summary"], style="bold green")
    if found is not None:
        for row in worst_classes(found, WORST):
            if row["f1"] < 1:
                screen.say(
                    f"  weakest: {row['name']}  recall {percent(row['recall'])}, precision {percent(row['precision'])}{_confused(found, row['name'])}"
                )
    screen.say(f"{duration(seconds)} of training; results in {folder.path}")
    screen.say("next:")
    screen.say(f"  python -m imgrec.evaluate ckpt={folder.path}{'' if found is not None else ' split=val'}")
    screen.say(f"  python -m imgrec.predict ckpt={folder.path} files=FOLDER_OR_IMAGES")
    screen.say(f"  tensorboard --logdir {folder.path.parent.parent}")


def _confused(found: Report, name: str) -> str:
    names = [row["name"] for row in found.per_class]
    counts = list(found.confusion[names.index(name)])
    counts[names.index(name)] = 0
    return f", most often taken for {names[counts.index(max(counts))]}" if max(counts) else ""
