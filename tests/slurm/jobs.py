"""Jobs on the cluster of the tests, and the equality of two run directories."""

import csv
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from imgrec.training.timeline import PARTS, share_column

HERE = Path(__file__).parent
SCRIPT = HERE / "cluster"
PATIENCE_S = 600  # for one event, on a machine that is busy with other things
TIMES = ("images_per_second", *map(share_column, PARTS), "seconds")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY")


@dataclass
class Job:
    """A submitted job; `number` may be that of a task of an array, such as 7_1."""

    number: str
    log: Path
    folder: Path
    environment: dict[str, str]

    def task(self, number: int) -> "Job":
        """A task of this array."""
        log = self.log.with_name(self.log.name.replace("*", str(number)))
        return Job(f"{self.number}_{number}", log, self.folder / str(number), self.environment)

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def shown(self) -> dict[str, str]:
        """What scontrol says of it: JobState, ExitCode, Restarts, ..."""
        text = subprocess.run(
            ["scontrol", "-o", "show", "job", self.number], env=self.environment, capture_output=True, text=True, check=True
        ).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def command(self, *arguments: str) -> None:
        subprocess.run(arguments, env=self.environment, check=True, capture_output=True)

    def wait(self, what: str, until: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not until():
            if time.monotonic() > end or (self.shown()["JobState"] in OVER and not until()):
                pytest.fail(f"{self.number} is {self.shown()['JobState']} and never was: {what}. Its log:\n{self.said()}")
            time.sleep(0.2)

    def reaches(self, epoch: int) -> None:
        """Wait for the line of an epoch, in whichever start of the job."""
        self.wait(f"in epoch {epoch}", lambda: re.search(rf"^ +{epoch}/\d+ ", self.said(), re.MULTILINE))

    def starts(self, times: int) -> None:
        self.wait(f"started {times} times", lambda: self.said().count(" starts on ") >= times)

    def ends(self) -> tuple[str, int]:
        """State and exit code, when it is over for good."""
        end = time.monotonic() + PATIENCE_S
        while (found := self.shown())["JobState"] not in OVER:
            if time.monotonic() > end:
                pytest.fail(f"{self.number} is still {found['JobState']} ({found['Reason']}). Its log:\n{self.said()}")
            time.sleep(0.3)
        return found["JobState"], int(found["ExitCode"].partition(":")[0])

    def finished(self, *, restarts: int | None = None) -> None:
        """Wait for a good end, after so many restarts."""
        assert self.ends() == ("COMPLETED", 0), self.said()
        assert " is done" in self.said()
        if restarts is not None:
            assert int(self.shown()["Restarts"]) == restarts, self.said()


@dataclass
class Cluster:
    environment: dict[str, str]
    directory: Path

    def run(self, *arguments: str, code: int = 0) -> str:
        """What a command prints, on the login node."""
        done = subprocess.run(arguments, env=self.environment, cwd=self.directory, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def node(self, *arguments: str) -> None:
        """tests/slurm/cluster ARGUMENTS: crash n1, up."""
        subprocess.run([SCRIPT, *arguments], env=self.environment, check=True, capture_output=True)

    def on(self, node: str, *arguments: str) -> str:
        return subprocess.run(
            [SCRIPT, "exec", node, *arguments], env=self.environment, check=True, capture_output=True, text=True
        ).stdout

    def submit(self, keys: str, *arguments: str, setup: str = "null") -> Job:
        """`imgrec slurm KEYS -- ARGUMENTS`"""
        said = self.run(sys.executable, "-m", "imgrec.slurm", *keys.split(), f"setup={setup}", "--", *arguments)
        told = dict(line.split(maxsplit=1) for line in said.splitlines())
        number = told["job"].partition(":")[0]
        return Job(number, Path(told["log"].removeprefix("tail -F ")), self.directory / told["run"], self.environment)


def curves(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what a clock says."""
    with (folder / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Nested data, its tensors bit for bit."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for place, pair in enumerate(zip(one, two, strict=True)):
            assert_same(*pair, f"{where}[{place}]")
    else:
        assert one == two, where


def read(folder: Path, name: str = "last") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True, map_location="cpu")
    return found


def assert_same_run(one: Path, two: Path) -> None:
    """Weights, their average and the optimizer, in the last and the best checkpoint, and the curves: bit for bit."""
    assert curves(one) == curves(two)
    for name in ("last", "best"):
        left, right = read(one, name), read(two, name)
        for key in ("epoch", "global_step", "state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
            assert_same(left.get(key), right.get(key), f"{name}.{key}")
