"""batch_size=auto and max_device_batch=auto: training steps of more and more images at once, measured in a process of its own.

The network, loss, optimizer and average of the weights are those of the run, the images are stand-ins. Sizes are doubled:
between two of them neither speed nor memory changes enough to look for.
"""

import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from imgrec.config.instantiate import python_command
from imgrec.config.schema import Node, RunConfig
from imgrec.distributed import signals
from imgrec.distributed.device_checks import trains_on_cuda
from imgrec.distributed.world import World
from imgrec.errors import ConfigError, Stopped

HEADROOM = 0.15  # of the free memory, for what a longer training needs: other batch sizes, fragments, the loader
GAIN = 1.1  # least factor of the speed for which more images at once are worth it
FIRST = 16  # images at once
LEAST_STEPS = 20  # in an epoch
BUDGET_S = 55.0
TIMED_S = 1.0  # for each size whose speed matters
# Variables by which a process is one of several.
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "SLURM_", "IMGREC_RUN_DIR")


class StepMeasure(NamedTuple):
    """Of the steps of one size: images per second, and the most bytes in use."""

    speed: float
    memory: int


Ask = Callable[
    [int], StepMeasure | None
]  # images at once -> None where they do not fit; TimeoutError where there is no time left


class SizeSearch(NamedTuple):
    """What was measured, by images at once, and why nothing larger was: of `last` images."""

    found: dict[int, StepMeasure]
    end: Literal["speed", "memory", "time", "all"]
    last: int

    @property
    def fastest(self) -> int:
        """The smallest within GAIN of the fastest."""
        return min(size for size in self.found if GAIN * self.found[size].speed >= max(self.found.values()).speed)


def search_sizes(
    ask: Ask, sizes: Iterable[int], *, for_speed: bool, allows: Callable[[int], bool] = lambda size: size > 0
) -> SizeSearch:
    """Ask for ascending sizes, up to the first that does not fit, or with `for_speed` to where four times as many are hardly faster.

    Where the first does not fit, its halves follow, as far as `allows` is true.
    """
    found: dict[int, StepMeasure] = {}
    asked = refused = 0
    try:
        for size in sizes:
            asked = size
            while (measured := ask(asked)) is None:
                refused = asked
                if found or not allows(asked // 2):
                    return SizeSearch(found, "memory", refused)
                asked //= 2
            found[asked] = measured
            if refused:
                return SizeSearch(found, "memory", refused)
            if for_speed and size // 4 in found and measured.speed < GAIN * found[size // 4].speed:
                return SizeSearch(found, "speed", size)
    except TimeoutError:
        return SizeSearch(found, "time", asked)
    return SizeSearch(found, "all", asked)


def doubled_sizes(most: int) -> list[int]:
    """FIRST, 2 * FIRST, ... up to `most`; of a smaller one the largest power of two."""
    first = min(FIRST, 1 << (most.bit_length() - 1))
    return [first << k for k in range((most // first).bit_length())]


def halved_sizes(share: int) -> list[int]:
    """Ascending: `share`, and the sizes in which it is computed in 2, 4, ... parts, from FIRST on."""
    parts = [1 << k for k in range(share.bit_length())]
    return sorted({-(-share // count) for count in parts if count == 1 or share // count >= FIRST})


@dataclass
class StepProbe:
    """A process of imgrec.training.batch_probe, started when it is first asked. `watch` is called with what is asked.

    key: of the run, for errors. alone: no other rank waits for this one.
    """

    key: str
    task: Node
    watch: Callable[[int], None]
    alone: bool
    _process: subprocess.Popen[bytes] | None = None
    _end: float = field(default_factory=lambda: time.monotonic() + BUDGET_S)

    def ask(self, images: int) -> StepMeasure | None:
        """Measure the step of so many images; see `Ask`. ConfigError where it fails for another reason than memory."""
        self.watch(images)
        if self._process is None:
            self._process = _start(self.task)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{images}\n".encode())
            process.stdin.flush()
            line = self._line(process.stdout.fileno())
        except BrokenPipeError:
            line = b""
        if not line and process.wait() < 0:  # killed, as the system does where memory ends
            self.close()
            return None
        answer = json.loads(line or '{"error": "its process failed"}')
        if isinstance(answer, dict):
            raise ConfigError(
                f"{self.key}=auto: a step of {images} images cannot be measured: {answer['error']}. "
                "Set batch_size=64 max_device_batch=1024, with which the training says more."
            )
        return None if answer is None else StepMeasure(*answer)

    def _line(self, number: int) -> bytes:
        """What the process answers; nothing where it has ended."""
        line = b""
        while not line.endswith(b"\n"):
            if self.alone and (reason := signals.stop_reason()) is not None:
                raise Stopped(f"stopped by {reason} while measuring the batch; no step is trained. Start the same command again.")
            if time.monotonic() >= self._end:
                raise TimeoutError
            if select.select([number], [], [], 0.2)[0]:
                if not (part := os.read(number, 4096)):
                    return b""
                line += part
        return line

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start(task: Node) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_RANKS)}
    errors = None if os.environ.get("IMGREC_DEBUG") == "1" else subprocess.DEVNULL
    command = python_command("-m", "imgrec.training.batch_probe", str(os.getpid()))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment)
    assert process.stdin is not None
    process.stdin.write(json.dumps(task).encode() + b"\n")
    return process


def make_probe(run: RunConfig, key: str, classes: Sequence[str], world: World, watch: Callable[[int], None]) -> StepProbe:
    """The process that measures steps of a run whose classes and precision are known, on this rank's device."""
    from imgrec.data.decoded import available_memory

    on_cuda, memory = trains_on_cuda(run.trainer), None
    if not on_cuda and Path("/proc/meminfo").exists():
        memory = int((1 - HEADROOM) * available_memory() / world.local_size)
    alone = replace(run.trainer.on_one_device(), num_nodes=1, strategy="auto", sync_batchnorm=False, compile=False)
    if world.size > 1:
        listed = run.trainer.devices
        own = listed[world.local_rank] if isinstance(listed, list) else world.local_rank
        alone = replace(alone, devices=[own] if on_cuda else 1)
    run = replace(
        run,
        trainer=replace(alone, limit_train_batches=1.0, limit_val_batches=1.0, limit_test_batches=1.0),
        weights=None,
        continue_from=None,
        parent=None,
        sampling="shuffle",
        class_weights=None,
        finetune=replace(run.finetune, freeze_epochs=0),  # later epochs train all of it
    )
    task = {"run": run.to_dict(), "classes": list(classes), "memory": memory, "seconds": TIMED_S if key == "batch_size" else 0.0}
    return StepProbe(key, task, watch, alone=world.size == 1)
