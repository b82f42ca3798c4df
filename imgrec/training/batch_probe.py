"""The process in which imgrec.training.batch_finder measures steps: what does not fit in memory ends it, and not the run.

stdin: a line with the task, and one for each number of images. stdout: a line for each, `StepMeasure` as JSON, null where so
many do not fit, or {"error": TEXT}.
"""

import gc
import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from imgrec.config.instantiate import build, find_allowed_packages
from imgrec.config.schema import RunConfig, run_config
from imgrec.data.augment import Augment
from imgrec.data.image_data import Common, ImageData, Splits
from imgrec.data.in_memory import InMemoryImages
from imgrec.distributed import signals
from imgrec.distributed.device_checks import trains_on_cuda
from imgrec.errors import OutOfMemory, first_line
from imgrec.inference.device import is_out_of_memory
from imgrec.training.batch_finder import HEADROOM, StepMeasure
from imgrec.training.step_speed import train_speed
from imgrec.training.trainer import prepare_process

UNTIMED_STEPS = 1  # which allocates the state of the optimizer, and chooses algorithms


class StandIn(ImageData):
    """`count` times the same picture, in the memory of one."""

    def __init__(self, count: int, names: Sequence[str], **common: Unpack[Common]) -> None:
        super().__init__(**common)
        self.count, self.names = count, tuple(names)

    def read(self) -> Splits:
        shape = self.preprocessing()["channels"], self.preprocessing()["image_size"], self.preprocessing()["image_size"]
        picture = torch.randint(256, (1, *shape), dtype=torch.uint8)
        labels = np.arange(self.count) % len(self.names)
        train = InMemoryImages(picture.expand(self.count, *shape), labels)
        return Splits(self.names, train=train, val=InMemoryImages(picture, labels[:1]), test=None)


def measure_step(run: RunConfig, classes: Sequence[str], images: int, seconds: float) -> StepMeasure | None:
    """The step of so many images at once; None where they do not fit in the memory."""
    data = asdict(run.data)
    data.pop("own")
    try:
        speed = train_speed(
            replace(run, batch_size=images, max_device_batch=images),
            StandIn(images, classes, **data),
            build("augment", run.augment, Augment),
            seconds,
            same=True,
            untimed=UNTIMED_STEPS,
        )
        return StepMeasure(speed, _peak_memory(run))
    except (OutOfMemory, RuntimeError, MemoryError) as error:
        if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
            raise
        return None
    finally:
        gc.collect()


def _peak_memory(run: RunConfig) -> int:
    """Bytes at most so far, of this process or on its GPU."""
    if trains_on_cuda(run.trainer):
        return torch.cuda.max_memory_reserved()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def limit_memory(run: RunConfig, more: int | None) -> None:
    """Let torch refuse what would leave no headroom: of a GPU's free memory, or `more` bytes than this process has by now."""
    if trains_on_cuda(run.trainer):
        devices = run.trainer.devices
        torch.cuda.set_device(devices[0] if isinstance(devices, list) else 0)
        free, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction((1 - HEADROOM) * free / total)
    elif more is not None:
        (size,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
        most = 1024 * int(size) + more
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def main() -> None:
    """Answer one line after another until stdin ends."""
    signals.end_with_parent()
    find_allowed_packages()
    if os.getppid() != int(sys.argv[1]):  # it was killed while torch was imported here
        return
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # for what a network prints
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    try:
        run = run_config(task["run"])
        prepare_process(run)
        limit_memory(run, task["memory"])
        for line in sys.stdin:
            answers.write(json.dumps(measure_step(run, task["classes"], int(line), task["seconds"])) + "\n")
    except Exception as error:  # of the network, or a setting: the run itself would raise it
        answers.write(json.dumps({"error": first_line(error)}) + "\n")


if __name__ == "__main__":
    main()
