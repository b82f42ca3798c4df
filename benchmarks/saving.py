"""What saving costs a run: the share of its time that it waits for saves, and the writer thread's share of the processor.

    OMP_NUM_THREADS=1 python benchmarks/saving.py [--rounds 5] [WORDS OF A TRAINING ...]

Each round is a whole training with its default saves (and then with one every `--steps` steps), in a folder that is removed afterwards. The copy of
all tensors is waited for; the file is written meanwhile, so its processor time counts too where all cores are busy. Medians over the rounds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import imgrec.training.checkpoint
from imgrec.config.load import load_config
from imgrec.train import fit
from imgrec.training.step_boundary import StepBoundary

# A network of 11 million parameters, for which a step takes long and a checkpoint is large (134 MB with Adam's states).
WORDS = [
    "data=fake",
    "data.train_samples=1280",
    "data.image_size=16",
    "model=resnet",
    "model.depth=18",
    "model.stem=imagenet",
    "epochs=5",
    "batch_size=64",
    "logger=none",
]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=20, help="steps from one save to the next in the second figures")
    asked, words = options.parse_known_args()
    shares: dict[str, list[tuple[float, float, int]]] = {"by default": [], f"every {asked.steps} steps": []}
    for number in range(asked.rounds):
        print(f"round {number + 1} of {asked.rounds}", file=sys.stderr)
        shares["by default"].append(measured(words or WORDS))
        shares[f"every {asked.steps} steps"].append(measured([*(words or WORDS), f"trainer.save_every_steps={asked.steps}"]))
    for name, found in shares.items():
        waited, written, saves = (statistics.median(column) for column in zip(*found, strict=True))
        print(
            f"saves {name}: waited {waited:.2%} of the time, writer {written:.2%} of a processor, {saves:.0f} saves (medians of {asked.rounds})"
        )


def measured(words: list[str]) -> tuple[float, float, int]:
    """(share of the time waited, processor time of the writer over the time, saves) of the epochs of one training, its end left out."""
    waited, written = [], []
    save, write = StepBoundary._save, imgrec.training.checkpoint.write_checkpoint

    def timed(whole: Callable[..., Any], clock: Callable[[], float], seconds: list[float]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            begun = clock()
            found = whole(*args)
            seconds.append(clock() - begun)
            return found

        return call

    with tempfile.TemporaryDirectory() as folder:
        StepBoundary._save = timed(save, time.perf_counter, waited)  # type: ignore[method-assign]
        imgrec.training.checkpoint.write_checkpoint = timed(write, time.thread_time, written)
        try:
            result = fit(load_config("train", [*words, f"runs_dir={folder}"]), quiet=True)
        finally:
            StepBoundary._save = save  # type: ignore[method-assign]
            imgrec.training.checkpoint.write_checkpoint = write
    seconds = result["train_seconds"]
    return sum(waited[:-1]) / seconds, sum(written) / seconds, len(waited)


if __name__ == "__main__":
    main()
