"""What measuring where the time goes costs: processor time of a step with and without callbacks.throughput and its marks.

    OMP_NUM_THREADS=1 python benchmarks/time_shares.py [--rounds 5] [WORDS OF A TRAINING ...]

A round is a training in which blocks of steps with and without them take turns, as on a busy machine two trainings differ by
more than what is measured. Its ratio is that of the medians of the blocks; printed is the median over the rounds.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from typing import Any

import pytorch_lightning as pl
from turns import machine

from imgrec.config.load import load_config
from imgrec.train import fit
from imgrec.training.callbacks.throughput import Throughput
from imgrec.training.timeline import Timeline

BLOCK = 10  # steps
# Small steps, of some milliseconds, so that what is added to each shows.
WORDS = [
    "data=fake",
    "data.train_samples=38400",
    "data.test_samples=64",
    "data.num_classes=10",
    "data.image_size=28",
    "data.channels=1",
    "data.mean=[0.5]",
    "data.std=[0.25]",
    "model=lenet",
    "augment=none",
    "epochs=1",
    "batch_size=64",
    "num_workers=0",
    "logger=none",
    "callbacks.console=null",
    "trainer.threads=1",
    "trainer.accelerator=cpu",
    "trainer.limit_val_batches=1",
]


class Turns(pl.Callback):
    """Switches Throughput and the marks off and on from block to block; `seconds`: of processor time of each block."""

    def __init__(self) -> None:
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self._on, self._steps, self._began, self._enter = True, 0, time.process_time(), Timeline.enter

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._steps += 1
        if self._steps % BLOCK:
            return
        if self._steps > 2 * BLOCK:
            self.seconds[self._on].append(time.process_time() - self._began)
        self._turn(trainer, not self._on)
        self._began = time.process_time()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._turn(trainer, True)

    def _turn(self, trainer: pl.Trainer, on: bool) -> None:
        self._on = on
        self._callbacks = getattr(self, "_callbacks", trainer.callbacks)
        trainer.callbacks = [one for one in self._callbacks if on or not isinstance(one, Throughput)]
        Timeline.enter = self._enter if on else lambda self, part: None


def results(rounds: int = 5, words: list[str] | None = None) -> list[dict[str, Any]]:
    """The median ratio of the processor time of a step, with over without."""
    ratios: list[float] = []
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
        turns = Turns()
        with tempfile.TemporaryDirectory(prefix="imgrec-time-shares-") as folder:
            fit(load_config("train", [*(words or WORDS), f"runs_dir={folder}"]), callbacks=turns, quiet=True)
        step = {on: statistics.median(seconds) / BLOCK for on, seconds in turns.seconds.items()}
        print(f"  a step: {1000 * step[False]:.2f} ms without, {1000 * step[True]:.2f} with", file=sys.stderr)
        ratios.append(step[True] / step[False])
    ratio = round(statistics.median(ratios), 4)
    return [{"name": "time_shares", "peer": "callbacks.throughput=null", "ratio": ratio, "runs": rounds, "machine": machine()}]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    asked, words = options.parse_known_args()
    print(json.dumps(results(asked.rounds, words or None), indent=1))


if __name__ == "__main__":
    main()
