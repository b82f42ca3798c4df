"""The report of runs and sweeps, as `train` writes it at its end: python -m imgrec.report runs/NAME/1 runs/NAME/sweep_1"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgrec.config.compose import compose_config
from imgrec.config.schema import dotted_types, parse_settings
from imgrec.distributed.command import run_command
from imgrec.errors import ConfigError, ExitCode
from imgrec.files import on_progress
from imgrec.sweeps.folder import is_sweep_folder
from imgrec.terminal import Terminal
from imgrec.training.stored_run import check_run

if TYPE_CHECKING:
    from imgrec.report.write import ReportFiles


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The keys of conf/report.yaml."""

    runs: str | list[str] | None
    overwrite: bool


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Write the report of each run or sweep, and say where it is."""
    config = parse_settings(ReportConfig, compose_config("report", argv, config_dir, types=dotted_types(ReportConfig)))
    names = [config.runs] if isinstance(config.runs, str) else config.runs or []
    folders = [Path(os.path.normpath(name)) for name in names]
    if not folders:
        raise ConfigError("runs=null: there is no run to report on. Type imgrec report runs/NAME/1.")
    for folder in folders:  # before the seconds that importing torch takes
        if not is_sweep_folder(folder):
            check_run(folder, "runs")
    terminal = Terminal()
    with terminal.progress_shown():
        for folder in folders:
            files = _write(folder, config.overwrite)
            on_progress.get()("reports", 1, len(folders))
            terminal.say(str(files.page) + ("" if files.card is None else f" and {files.card.name}"))
            if files.kept:
                terminal.say(f"{files.kept} was edited, and stays: overwrite=true writes it anew", style="yellow")
    return ExitCode.OK


def _write(folder: Path, overwrite: bool) -> "ReportFiles":
    from imgrec.report.sweep_page import write_sweep_page
    from imgrec.report.write import ReportFiles, write_report

    if is_sweep_folder(folder):
        return ReportFiles(write_sweep_page(folder, overwrite=overwrite), None)
    return write_report(folder, overwrite=overwrite)


if __name__ == "__main__":
    sys.exit(run_command("report", main, sys.argv[1:]))
