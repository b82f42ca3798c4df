"""Runs beside one another, and which is better than the first: python -m imgrec.compare runs/NAME/1 runs/NAME/2"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imgrec.config.compose import compose_config
from imgrec.config.schema import dotted_types, parse_settings
from imgrec.distributed.command import run_command
from imgrec.errors import ConfigError, plural, shorten
from imgrec.files import atomic_write, begins_with, check_output, is_our_png, resolved
from imgrec.inference.curves import draw_curves
from imgrec.terminal import Terminal, duration, percent, percents
from imgrec.training.comparison import (
    Comparison,
    Entry,
    compare_entries,
    comparison_sentence,
    entry_name,
    entry_values,
    main_values,
    make_entries,
    mean_deviation,
    run_names,
)
from imgrec.training.measured_file import change_sentence
from imgrec.training.stored_run import curve, read_run

OUR_JSON = b'{\n "imgrec": "compare"'  # how our JSON begins
MOST_KEYS = 20  # rows of the table of keys
MOST_LETTERS = 30  # of a value in a table
CURVES = {"val/accuracy": "validation accuracy", "val/loss": "validation loss"}


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The keys of conf/compare.yaml."""

    runs: str | list[str] | None
    baseline: str | None
    out: str
    plot: str | None
    resamples: int
    seed: int
    overwrite: bool


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Read the runs, print the tables and a sentence for each comparison, write the files."""
    config = parse_settings(CompareConfig, compose_config("compare", argv, config_dir, types=dotted_types(CompareConfig)))
    paths, start = _run_paths(config)
    out, plot = _check_files(config)
    keys = ["baseline" if path == start and config.baseline else "runs" for path in paths]
    runs = [read_run(path, key, together="compare") for path, key in zip(paths, keys, strict=True)]
    if len(runs) < 2:
        given = paths[0] if paths else "null"
        raise ConfigError(f"runs={given}: compare needs two runs or more. Type imgrec compare runs/NAME/1 runs/NAME/2.")
    entries = make_entries(runs)
    baseline = next(entry for entry in entries if any(run.path == start for run in entry.runs))
    terminal = Terminal()
    with terminal.progress_shown():
        comparisons, notes = compare_entries(entries, baseline, resamples=config.resamples, seed=config.seed)
    notes += [sentence for run in runs if (sentence := change_sentence(run.path, run.result)) is not None]
    names = dict(zip([run.path for run in runs], run_names(runs), strict=True))
    labels = {entry.letter: entry_name([names[run.path] for run in entry.runs]) for entry in entries}
    values = entry_values(entries)
    shown = main_values(values)
    _print(terminal, entries, labels, shown, comparisons, notes)
    content = {
        "imgrec": "compare",
        "runs": [_entry_content(entry, labels[entry.letter]) for entry in entries],
        "keys": {key: dict(zip(labels, row, strict=True)) for key, row in values.items()},
        "baseline": baseline.letter,
        "comparisons": [
            asdict(comparison) | {"sentence": comparison_sentence(comparison)} for comparison in comparisons
        ],
        "notes": notes,
        "resamples": config.resamples,
        "seed": config.seed,
    }  # fmt: skip
    atomic_write(out, json.dumps(content, indent=1))
    if plot is not None:
        panels = {title: [[curve(run, name) for run in entry.runs] for entry in entries] for name, title in CURVES.items()}
        atomic_write(plot, draw_curves(panels, _legend(labels, shown)))
    terminal.say(f"figures in {out}" + ("" if plot is None else f", curves in {plot}"))
    return 0


def _run_paths(config: CompareConfig) -> tuple[list[Path], Path | None]:
    """The run directories, the baseline's too, and that of the baseline: by default the first."""
    named = [config.runs] if isinstance(config.runs, str) else config.runs or []
    paths = [Path(os.path.normpath(name)) for name in named]
    start = Path(os.path.normpath(config.baseline)) if config.baseline is not None else None
    if start is not None and start not in paths:
        paths.insert(0, start)
    seen: dict[Path, Path] = {}
    for path in paths:
        if (first := seen.setdefault(resolved(path), path)) is not path:
            raise ConfigError(f"runs={path}: this run is named twice{f', also as {first}' * (first != path)}. Remove one.")
    return paths, start or next(iter(paths), None)


def _check_files(config: CompareConfig) -> tuple[Path, Path | None]:
    out = Path(config.out)
    plot = None if config.plot == "none" else Path(config.plot) if config.plot else out.with_suffix(".png")
    check_output("out", out, (".json",), ours=begins_with(OUR_JSON), overwrite=config.overwrite)
    if plot is not None:
        check_output("plot", plot, (".png",), ours=is_our_png, overwrite=config.overwrite)
    return out, plot


def _print(
    terminal: Terminal,
    entries: Sequence[Entry],
    labels: dict[str, str],
    values: dict[str, list[str]],
    comparisons: Sequence[Comparison],
    notes: Sequence[str],
) -> None:
    terminal.say(_runs_table(entries, labels))
    terminal.say()
    if values:
        terminal.say(_keys_table(labels, values))
        more = len(values) - MOST_KEYS
        terminal.say(f"and {plural(more, 'more key')} in the .json" if more > 0 else "")
    else:
        terminal.say("the runs have the same config\n")
    for comparison in comparisons:
        sentence = comparison_sentence(comparison)
        terminal.say(sentence[0].upper() + sentence[1:], style="bold" if comparison.shown else None)
    for note in notes:
        terminal.say(note, style="yellow")
    if comparisons:
        terminal.say(_method(comparisons))
    terminal.say()


def _method(comparisons: Sequence[Comparison]) -> str:
    """What the figures in the sentences are."""
    pairs, seeds = [any((each.only is None) == several for each in comparisons) for several in (False, True)]
    parts = ["95% intervals from samples of the test images, p by McNemar's exact test"] * pairs
    parts += ["with several seeds both by a t test over seeds and images"] * seeds
    holm = f"; p corrected for {len(comparisons)} comparisons by Holm's method" * (len(comparisons) > 1)
    return f"({'; '.join(parts)}{holm})"


def _runs_table(entries: Sequence[Entry], labels: dict[str, str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    seeds = any(len(entry.runs) > 1 for entry in entries)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    table.add_column("run", overflow="fold")
    untested = not all(
        entry.figures("accuracy") for entry in entries
    )  # else the column is left out, so that 80 letters are enough
    validation = ["best val/accuracy"] * untested
    for heading in [*["seeds"] * seeds, "test accuracy (95%)", "macro F1", "loss", *validation, "epochs", "time"]:
        table.add_column(heading, justify="right")
    for entry in entries:
        best = [max(values) for run in entry.runs if (values := curve(run, "val/accuracy")[1])]
        epochs = [len(run.epochs) for run in entry.runs]
        seconds = [run.result["train_seconds"] for run in entry.runs if run.result is not None]
        table.add_row(
            entry.letter,
            Text(labels[entry.letter]),
            *[str(len(entry.runs))] * seeds,
            _accuracy(entry),
            _share(entry.figures("macro_f1")),
            _number(entry.figures("loss")),
            *[_share(best)] * untested,
            "-" if not any(epochs) else str(epochs[0]) if len(set(epochs)) == 1 else f"{min(epochs)} to {max(epochs)}",
            duration(sum(seconds) / len(seconds)) if seconds else "-",
        )
    return table


def _accuracy(entry: Entry) -> str:
    """'98.33% (96.4 to 99.2)', of several seeds '98.12% ± 0.21'."""
    if len(entry.runs) > 1 or entry.runs[0].test is None:
        return _share(entry.figures("accuracy"))
    return f"{percent(entry.runs[0].test['accuracy'])} {percents(entry.runs[0].test['accuracy_interval'])}"


def _share(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, deviation = mean_deviation(values)
    return percent(mean) + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _number(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, deviation = mean_deviation(values)
    return f"{mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _keys_table(labels: dict[str, str], values: dict[str, list[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("key that differs", overflow="fold")
    for letter in labels:
        table.add_column(letter, overflow="fold")
    for key, row in list(values.items())[:MOST_KEYS]:
        table.add_row(key, *(Text(shorten(value, MOST_LETTERS)) for value in row))
    return table


def _legend(labels: dict[str, str], values: dict[str, list[str]]) -> list[str]:
    """'A  digits_resnet/1: optim=Adam optim.lr=0.003' of each entry."""
    settings = [
        " ".join(f"{key}={shorten(row[number], MOST_LETTERS)}" for key, row in values.items()) for number in range(len(labels))
    ]
    return [
        f"{letter}  {name}{f': {what}' * bool(what)}"
        for (letter, name), what in zip(labels.items(), settings, strict=True)
    ]  # fmt: skip


def _entry_content(entry: Entry, name: str) -> dict[str, Any]:
    tests = [run.test for run in entry.runs if run.test is not None]
    figures = {key: mean_deviation(entry.figures(key)) for key in ("accuracy", "macro_f1", "loss") if tests}
    return {
        "letter": entry.letter,
        "name": name,
        "folders": [str(run.path) for run in entry.runs],
        "seeds": [run.config.get("seed") for run in entry.runs],
        "finished": all(run.result is not None for run in entry.runs),
        "test": {key: mean for key, (mean, _) in figures.items()} or None,
        "deviation": {key: deviation for key, (_, deviation) in figures.items()} if len(tests) > 1 else None,
        "accuracy_interval": tests[0]["accuracy_interval"] if len(entry.runs) == 1 and tests else None,
        "images": [test["count"] for test in tests],
        "epochs": [len(run.epochs) for run in entry.runs],
        "train_seconds": [run.result["train_seconds"] for run in entry.runs if run.result is not None],
    }


if __name__ == "__main__":
    sys.exit(run_command("compare", main, sys.argv[1:]))
