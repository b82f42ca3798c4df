"""The processes of a run: who started them, the group that connects them, and what they say with one voice.

Three ways lead to more than one process: torchrun, SLURM's srun, and a plain command that wants several devices of its host, for which
imgrec.distributed.launcher starts them with torchrun's variables. Lightning's own launcher is never used: it starts its processes from sys.argv.
Imports no torch before `connect`.
"""

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from imgrec.errors import ConfigError

if TYPE_CHECKING:
    from lightning_fabric.plugins import ClusterEnvironment


RUN_DIR_VARIABLE = "IMGREC_RUN_DIR"  # set in the processes that imgrec.distributed.launcher starts: the run folder, which their parent chose and locked
NO_STEP = 0xFFFFFFF0  # SLURM's step numbers from here on are no srun: the batch script's, an interactive shell's


@dataclass(frozen=True)
class World:
    """Where this process stands among those of its run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of its machine
    local_size: int = 1
    nodes: int = 1
    started_by: Literal["alone", "imgrec", "torchrun", "slurm"] = "alone"


def world() -> World:
    """What torchrun's or SLURM's variables say, or imgrec's own to its children; a process in a batch or interactive shell is alone.

    ConfigError where such a variable is no number.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        size, local_size = env_number("WORLD_SIZE", least=1), env_number("LOCAL_WORLD_SIZE", 1, least=1)
        return World(
            rank=env_number("RANK"),
            size=size,
            local_rank=env_number("LOCAL_RANK", 0),
            local_size=local_size,
            nodes=max(1, size // local_size),
            started_by="imgrec" if RUN_DIR_VARIABLE in env else "torchrun",
        )
    if env_number("SLURM_STEP_ID", NO_STEP) < NO_STEP and "SLURM_PROCID" in env and "SLURM_PTY_PORT" not in env:
        size = env_number("SLURM_STEP_NUM_TASKS", env_number("SLURM_NTASKS", 1))
        tasks = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
        return World(
            rank=env_number("SLURM_PROCID"),
            size=size,
            local_rank=env_number("SLURM_LOCALID", 0),
            local_size=tasks[min(env_number("SLURM_NODEID", 0), len(tasks) - 1)],
            nodes=len(tasks),
            started_by="slurm",
        )
    return World()


def env_number(name: str, default: int | None = None, *, least: int = 0) -> int:
    """An environment variable that holds a whole number, `least` or more; ConfigError where it does not, or is unset and there is no default."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal() or int(text) < least:
        raise ConfigError(
            f"{name}={text} in the environment: a number{f' of {least} or more' if least else ''} was expected there. Unset it, or start with torchrun or srun."
        )
    return int(text)


def _tasks_per_node(text: str) -> list[int]:
    """'2(x3),1' -> [2, 2, 2, 1]"""
    found = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    if not all(found):
        raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE={text} in the environment cannot be read. Unset it, or start with srun.")
    return [int(part[1]) for part in found if part for _ in range(int(part[2] or 1))]


def cluster_environment(world: World) -> "ClusterEnvironment":
    """What Lightning asks for ranks and addresses. Named, not left to its detection: that takes a batch shell without srun for a job step."""
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if world.started_by == "slurm":
        return SLURMEnvironment(auto_requeue=False)
    if world.started_by == "alone":
        return LightningEnvironment()
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    return TorchElasticEnvironment()
