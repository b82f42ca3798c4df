"""The devices and processes of a config, compared with what torchrun or SLURM started and what this machine has.

Imports no torch before GPUs are counted.
"""

import os
from typing import Literal

from imgrec.config.annotations import format_value
from imgrec.config.schema import TrainerConfig
from imgrec.distributed.world import World, env_number
from imgrec.errors import ConfigError, plural


def check_world(config: TrainerConfig, world: World) -> None:
    """ConfigError where trainer.devices or trainer.num_nodes contradict how this process was started."""
    if config.devices in (0, []):
        raise ConfigError(f"trainer.devices={format_value(config.devices)}: a run needs one. Set trainer.devices=auto.")
    if world.started_by == "alone":
        _check_alone(config.num_nodes)
    elif world.started_by == "slurm":
        _check_slurm(config, world)
    else:
        processes, machines = plural(world.local_size, "process", "es"), plural(world.nodes, "machine")
        started = f"torchrun started {processes} on this machine"
        _check_count("devices", config.devices, world.local_size, started, "type torchrun --nproc-per-node")
        _check_count("num_nodes", config.num_nodes, world.nodes, f"torchrun runs on {machines}", "type torchrun --nnodes")


def check_accelerator(config: TrainerConfig) -> None:
    """ConfigError for an accelerator, or a number of GPUs, that this machine does not have."""
    import torch

    gpus, devices = torch.cuda.device_count(), config.devices
    if config.accelerator == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("trainer.accelerator=mps: torch has no Apple GPU here. Set trainer.accelerator=auto.")
    if config.accelerator in ("gpu", "cuda") and not gpus and not torch.backends.mps.is_available():
        raise ConfigError(f"trainer.accelerator={config.accelerator}: torch has no GPU here. Set trainer.accelerator=auto.")
    if config.accelerator in ("auto", "gpu", "cuda") and gpus and devices != "auto":
        most = max(devices) + 1 if isinstance(devices, list) else devices
        if most > gpus:
            raise ConfigError(
                f"trainer.devices={format_value(devices)}, but torch has {plural(gpus, 'GPU')} here. "
                "Set trainer.devices=auto, or trainer.accelerator=cpu."
            )


def trains_on_cuda(config: TrainerConfig) -> bool:
    """Whether Lightning uses CUDA for this accelerator."""
    import torch

    return config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _check_alone(nodes: int | Literal["auto"]) -> None:
    tasks, machines = (env_number(name, 1) for name in ("SLURM_NTASKS", "SLURM_NNODES"))
    if "SLURM_JOB_ID" in os.environ and "SLURM_PTY_PORT" not in os.environ and (tasks > 1 or machines > 1):
        raise ConfigError(
            f"SLURM_NTASKS={tasks} SLURM_NNODES={machines}, but without srun one process was started. "
            "Type srun before python, or write #SBATCH --nodes=1 --ntasks=1."
        )
    if nodes != "auto" and nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes}, but this process was started alone. "
            f"Type NODES={nodes} NODE_RANK=0 MASTER=HOST launch/torchrun.sh ... on each machine, "
            "or use SLURM (imgrec slurm --help)."
        )


def _check_count(key: str, value: int | str | list[int], actual: int, started: str, option: str) -> None:
    """ConfigError where trainer.`key` is not the number of processes or nodes that were `started`."""
    count = len(value) if isinstance(value, list) else value
    if count not in ("auto", actual):
        raise ConfigError(f"trainer.{key}={format_value(value)}, but {started}. Leave trainer.{key} out, or {option}={count}.")


def _check_slurm(config: TrainerConfig, world: World) -> None:
    for name in ("SLURM_NTASKS", "SLURM_NNODES", "SLURM_NTASKS_PER_NODE"):  # Lightning reads them
        env_number(name, 1)
    tasks, nodes = plural(world.local_size, "task"), plural(world.nodes, "node")
    if world.local_size * world.nodes != world.size:
        spread = os.environ.get("SLURM_STEP_TASKS_PER_NODE")
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE={spread}: expected as many tasks on each node. "
            f"Write #SBATCH --nodes={world.nodes} --ntasks-per-node={-(-world.size // world.nodes)}."
        )
    env_number("SLURM_LOCALID", 0, most=world.local_size - 1)
    started = f"SLURM started {tasks} on this node"
    _check_count("devices", config.devices, world.local_size, started, "write #SBATCH --ntasks-per-node")
    _check_count("num_nodes", config.num_nodes, world.nodes, f"SLURM started this job on {nodes}", "write #SBATCH --nodes")
    if world.size > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:  # Lightning's SLURMEnvironment needs it
        raise ConfigError(
            f"SLURM_NTASKS={world.size} without --ntasks-per-node. "
            f"Write #SBATCH --ntasks-per-node={world.local_size} instead of --ntasks."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = len([gpu for gpu in visible.split(",") if gpu])
    if config.accelerator not in ("cpu", "mps") and config.devices == "auto" and gpus not in (0, world.local_size):
        raise ConfigError(
            f"{started}, but each has {plural(gpus, 'GPU')} "
            f"(CUDA_VISIBLE_DEVICES={visible}). Write #SBATCH --ntasks-per-node=N --gpus-per-node=N with the same N, "
            f"or set trainer.devices={world.local_size}."
        )


def wanted_processes(config: TrainerConfig) -> int:
    """The number of processes, one per device of this host, for a run that a plain command started. 1: no launcher."""
    if config.devices != "auto":
        return len(config.devices) if isinstance(config.devices, list) else config.devices
    if config.accelerator in ("cpu", "mps"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())
