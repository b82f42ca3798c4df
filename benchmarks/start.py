"""How long imgrec takes to start: its import, its help, a config error, and the first training step.

usage: python benchmarks/start.py [rounds=5]

Each is a process of its own, in turns; processor time and the clock. The first step is that of `imgrec train` with its defaults
(scikit-learn's digits), against a process that does nothing but `import torch, pytorch_lightning`; both end without tidying up.
"""

import resource
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

from turns import machine

FIRST_STEP = """
import os, sys
from imgrec.train import main
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
main(sys.argv[1:])
"""
IMGREC = [sys.executable, "-m", "imgrec.cli", "train"]
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import": [sys.executable, "-c", "import imgrec"],
    "help": [*IMGREC, "--help"],
    "config error": [*IMGREC, "optim.lrr=1"],
    "import torch, pytorch_lightning": [sys.executable, "-c", "import os, torch, pytorch_lightning; os._exit(0)"],
    "first step": [sys.executable, "-c", FIRST_STEP, "trainer.accelerator=cpu", "trainer.devices=1"],
}
EXPECTED = {"config error": 2}  # exit codes that are not 0


def seconds(name: str, folder: str) -> tuple[float, float]:
    """Processor time and clock of a command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(COMMANDS[name], cwd=folder, capture_output=True, check=False)
    clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == EXPECTED.get(name, 0), done.stderr.decode()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, clock


def results(rounds: int = 5) -> list[dict[str, Any]]:
    """start_import_ms is beyond Python's own start. The ratios are of processor time."""
    with tempfile.TemporaryDirectory(prefix="imgrec-start-") as folder:
        turns = [{name: seconds(name, folder) for name in COMMANDS} for _ in range(rounds + 1)][
            1:
        ]  # the first fills the page cache
    for name in COMMANDS:
        cpu, clock = (median(turn[name][kind] for turn in turns) for kind in (0, 1))
        print(f"{name:<33}{cpu:7.3f} s of processor time {clock:7.3f} s by the clock", file=sys.stderr)

    def typical(name: str) -> float:
        return median(turn[name][0] for turn in turns)

    figures = {
        "start_import_ms": ("python", 1e3 * (typical("import") - typical("python"))),
        "start_help_s": ("none", typical("help")),
        "start_error_s": ("none", typical("config error")),
        "start_first_step": (
            "import torch, pytorch_lightning",
            median(turn["first step"][0] / turn["import torch, pytorch_lightning"][0] for turn in turns),
        ),
    }
    return [
        {"name": name, "peer": peer, "ratio": round(figure, 3), "runs": rounds, "machine": machine()}
        for name, (peer, figure) in figures.items()
    ]


def main() -> None:
    given = {"rounds": "5", **dict(word.split("=", 1) for word in sys.argv[1:])}
    for result in results(int(given["rounds"])):
        print(f"{result['name']} {result['ratio']} (against {result['peer']}; {result['runs']} rounds, {result['machine']})")


if __name__ == "__main__":
    main()
