"""A trace of a few training steps."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.profiler import ProfilerActivity, profile, schedule

from imgrec.errors import plural
from imgrec.files import naming

SKIPPED, RECORDED = 3, 5  # steps of a start; the first ones open workers, choose algorithms, compile
OPERATORS = 40  # operators in the table


class Profile(pl.Callback):
    """Writes FOLDER/trace.json, for chrome://tracing or ui.perfetto.dev, and FOLDER/operators.txt of RECORDED steps of rank 0."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self._profiler: profile | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else lines of C++ on stderr, one of them an error without a GPU
            self._on_cuda = pl_module.device.type == "cuda"
            self._profiler = profile(
                activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_cuda else [])],
                schedule=schedule(wait=SKIPPED - 1, warmup=1, active=RECORDED, repeat=1),
                on_trace_ready=self._write,
                acc_events=True,  # else torch 2.11 warns that a second cycle would clear what this one recorded
            )
            self._profiler.start()

    def on_train_batch_end(self, *args: Any) -> None:
        if self._profiler is not None:
            self._profiler.step()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._profiler is not None:
            self._profiler.stop()  # writes what was recorded so far
        if self._profiler is not None:
            self.say(f"profile=true: fewer than {plural(SKIPPED + 1, 'step')} were trained; nothing was recorded.")
            self._profiler = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _write(self, recorded: profile) -> None:
        self.folder.mkdir(exist_ok=True)
        order = "self_device_time_total" if self._on_cuda else "self_cpu_time_total"
        with naming(self.folder):
            recorded.export_chrome_trace(str(self.folder / "trace.json"))
            (self.folder / "operators.txt").write_text(recorded.key_averages().table(sort_by=order, row_limit=OPERATORS) + "\n")
        self.say(f"profile of {RECORDED} steps in {self.folder}: operators.txt, and trace.json for ui.perfetto.dev")
        self._profiler = None
