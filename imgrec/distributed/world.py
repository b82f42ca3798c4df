"""The rank of this process and the world size, from the environment variables of whoever started it. Imports no torch.

Several processes are started by torchrun, by SLURM's srun, or with torchrun's variables by imgrec.distributed.launcher,
for a plain command that uses several devices. Lightning's own launcher is never used, as it starts them from sys.argv.
"""

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from imgrec.errors import ConfigError

if TYPE_CHECKING:
    from lightning_fabric.plugins import ClusterEnvironment


RUN_DIR_VARIABLE = "IMGREC_RUN_DIR"  # set by imgrec.distributed.launcher: the run directory, which it chose and locked
NO_STEP = 0xFFFFFFF0  # SLURM's step numbers from here on are not of srun, but of a batch script or an interactive shell


@dataclass(frozen=True)
class World:
    """The rank of this process and the world size."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine
    local_size: int = 1
    nodes: int = 1
    started_by: Literal["alone", "imgrec", "torchrun", "slurm"] = "alone"

    @property
    def on_one_machine(self) -> bool:
        """Whether all ranks are on this machine."""
        return self.local_size == self.size


def read_world() -> World:
    """The World in the variables of torchrun, srun or imgrec.distributed.launcher; without them the process is alone.

    ConfigError where such a variable is not a number, or the rank is not below the world size.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, size, local_size = env_number("RANK"), env_number("WORLD_SIZE", least=1), env_number("LOCAL_WORLD_SIZE", 1, least=1)
        if rank >= size:
            raise ConfigError(
                f"RANK={rank} WORLD_SIZE={size} in the environment: ranks go from 0 to {size - 1}. Start with torchrun."
            )
        return World(
            rank=rank,
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
    """The integer in an environment variable, or the default; ConfigError where it is none, below `least` or unset."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal() or int(text) < least:
        raise ConfigError(
            f"{name}={text} in the environment: expected an integer, {least} or more. Unset it, or start with torchrun or srun."
        )
    return int(text)


def _tasks_per_node(text: str) -> list[int]:
    """'2(x3),1' -> [2, 2, 2, 1]"""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    if not all(parts):
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE={text} in the environment: expected tasks such as 4(x2),3. Unset it, or start with srun."
        )
    return [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]


def cluster_environment(world: World) -> "ClusterEnvironment":
    """Where Lightning reads ranks and addresses. Its own detection would mistake a batch shell for a step of srun."""
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if world.started_by == "slurm":
        return SLURMEnvironment(auto_requeue=False)
    if world.started_by == "alone":
        return LightningEnvironment()
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    return TorchElasticEnvironment()
