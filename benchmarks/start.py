"""How long imgrec takes to start: its import, its help, a config error, and the first training step.

usage: python benchmarks/start.py [rounds=5]

Each is a process of its own, in turns; processor time. The first step is that of `imgrec train` with its defaults
(scikit-learn's digits), against a process that does nothing but `import torch, pytorch_lightning`; both end without tidying up.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from statistics import median

from turns import Result, machine, processor_seconds, ratio

FIRST_STEP = """
import os, sys
from imgrec.train import main
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
main(sys.argv[1:])
"""
LIGHTNING = "import torch, pytorch_lightning"
IMGREC = [sys.executable, "-m", "imgrec.cli", "train"]
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import": [sys.executable, "-c", "import imgrec"],
    "help": [*IMGREC, "--help"],
    "config error": [*IMGREC, "optim.lrr=1"],
    LIGHTNING: [sys.executable, "-c", f"import os; {LIGHTNING}; os._exit(0)"],
    "first step": [sys.executable, "-c", FIRST_STEP, "trainer.accelerator=cpu", "trainer.devices=1"],
}
EXPECTED = {"config error": 2}  # exit codes that are not 0


def command(name: str, folder: str, *, turns: Iterator[None]) -> None:
    for _ in turns:
        done = subprocess.run(COMMANDS[name], cwd=folder, capture_output=True, check=False)
        assert done.returncode == EXPECTED.get(name, 0), done.stderr.decode()


def results(rounds: int = 5) -> list[Result]:
    """start_import_ms is beyond Python's own start."""
    with tempfile.TemporaryDirectory(prefix="imgrec-start-") as folder:
        seconds = processor_seconds({name: partial(command, name, folder) for name in COMMANDS}, rounds=rounds)
    spent = {name: median(times) for name, times in seconds.items()}
    for name, typical in spent.items():
        print(f"{name:<33}{typical:7.3f} s of the processor's time")
    figures = {
        "start_import_ms": ("python", 1e3 * (spent["import"] - spent["python"])),
        "start_help_s": ("none", spent["help"]),
        "start_error_s": ("none", spent["config error"]),
        "start_first_step": (LIGHTNING, ratio(seconds, "first step", LIGHTNING)),
    }
    return [
        Result(name=name, peer=peer, ratio=figure, runs=rounds, machine=machine()) for name, (peer, figure) in figures.items()
    ]


def main() -> None:
    given = {"rounds": "5", **dict(word.split("=", 1) for word in sys.argv[1:])}
    for result in results(int(given["rounds"])):
        print(f"{result['name']} {result['ratio']} (against {result['peer']}; {result['runs']} rounds, {result['machine']})")


if __name__ == "__main__":
    main()
