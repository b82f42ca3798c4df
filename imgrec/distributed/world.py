"""The rank of this process and the world size, from the environment variables of whoever started it. Imports no torch.

Several processes are started by torchrun, by SLURM's srun, or with torchrun's variables by imgrec.distributed.launcher,
for a plain command that uses several devices. Lightning's own launcher is never used, as it starts them from sys.argv.
"""

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from imgrec.config.annotations import LONGEST_SHOWN, whole_number
from imgrec.errors import ConfigError

if TYPE_CHECKING:
    from lightning_fabric.plugins import ClusterEnvironment


RUN_DIR_VARIABLE = "IMGREC_RUN_DIR"  # set by imgrec.distributed.launcher: the run directory, which it chose and locked
MOST_RANKS = 1_000_000  # of a run
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

    ConfigError where such a variable is not a number, or contradicts another one.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, size = _rank_and_size("RANK", "WORLD_SIZE", "torchrun")
        local_rank, local_size = _rank_and_size("LOCAL_RANK", "LOCAL_WORLD_SIZE", "torchrun", alone=True)
        if size % local_size:
            raise ConfigError(
                f"WORLD_SIZE={size} LOCAL_WORLD_SIZE={local_size} in the environment: expected as many processes on each machine. "
                "Type torchrun --nproc-per-node=N with the same N on all of them."
            )
        return World(
            rank=rank,
            size=size,
            local_rank=local_rank,
            local_size=local_size,
            nodes=max(1, size // local_size),
            started_by="imgrec" if RUN_DIR_VARIABLE in env else "torchrun",
        )
    if env_number("SLURM_STEP_ID", NO_STEP) < NO_STEP and "SLURM_PROCID" in env and "SLURM_PTY_PORT" not in env:
        rank, size = _rank_and_size(
            "SLURM_PROCID", "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS", "srun"
        )
        tasks = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
        local_size = tasks[min(env_number("SLURM_NODEID", 0), len(tasks) - 1)]
        return World(
            rank=rank,
            size=size,
            local_rank=env_number("SLURM_LOCALID", 0),
            local_size=local_size,
            nodes=len(tasks),
            started_by="slurm",
        )
    return World()


def _rank_and_size(rank_name: str, size_name: str, starter: str, *, alone: bool = False) -> tuple[int, int]:
    """A rank and the number of ranks; `alone`: 0 of 1 where the variables are not set."""
    defaults = (0, 1) if alone else (None, None)
    rank, size = env_number(rank_name, defaults[0]), env_number(size_name, defaults[1], least=1, most=MOST_RANKS)
    if rank >= size:
        raise ConfigError(
            f"{rank_name}={rank} {size_name}={size} in the environment: expected {rank_name} from 0 to {size - 1}. "
            f"Unset them, or start with {starter}."
        )
    return rank, size


def env_number(name: str, default: int | None = None, *, least: int = 0, most: int | None = None) -> int:
    """The integer in an environment variable, or the default; ConfigError where it is none, out of range or unset."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    number = None if text is None else whole_number(text)
    if number is None or number < least or (most is not None and number > most):
        shown = "" if text is None else text[:LONGEST_SHOWN]
        limits = f"{least} or more" if most is None else f"{least} to {most}"
        raise ConfigError(
            f"{name}={shown} in the environment: expected an integer, {limits}. Unset it, or start with torchrun or srun."
        )
    return number


def _tasks_per_node(text: str) -> list[int]:
    """'2(x3),1' -> [2, 2, 2, 1]"""
    parts = [re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part) for part in text.split(",")]
    if not all(parts):
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE={text[:LONGEST_SHOWN]} in the environment: expected tasks such as 4(x2),3. "
            "Unset it, or start with srun."
        )
    return [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]


def main_address(world: World) -> tuple[str, int]:
    """The host and port at which rank 0 waits for the others; ConfigError where the variables have none."""
    name = "MASTER_ADDR" if "MASTER_ADDR" in os.environ or world.started_by != "slurm" else "SLURM_NODELIST"
    if "MASTER_PORT" in os.environ:
        env_number("MASTER_PORT", least=1, most=65535)
    elif world.started_by == "slurm":
        env_number("SLURM_JOB_ID")  # the port is 15000 + its last four digits
    lightning = cluster_environment(world)
    host, port = lightning.main_address, lightning.main_port
    try:
        host.encode("idna")  # as getaddrinfo does
    except UnicodeError:
        host = ""
    if not host or host != host.strip():
        raise ConfigError(
            f"{name}={os.environ.get(name, '')[:LONGEST_SHOWN]} in the environment: expected the name of a host. "
            "Set MASTER_ADDR to that of rank 0's machine, or to its address."
        )
    return host, port


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
