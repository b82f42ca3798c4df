"""The devices and processes of a config, compared with what torchrun or SLURM started and what this machine has.

Imports no torch before GPUs are counted.
"""

import os
from typing import Any, Literal, NamedTuple

from imgrec.config.annotations import format_value
from imgrec.config.schema import TrainerConfig
from imgrec.distributed.world import World, env_number
from imgrec.errors import ConfigError


def check_world(config: TrainerConfig, world: World) -> None:
    """ConfigError where trainer.devices or trainer.num_nodes contradict how this process was started."""
    devices, nodes = config.devices, config.num_nodes
    if world.started_by == "alone":
        _check_alone(nodes)
        return
    count = None if devices == "auto" else len(devices) if isinstance(devices, list) else devices
    if world.started_by == "slurm":
        _check_slurm(config, world, count)
        return
    if count is not None and count != world.local_size:
        raise ConfigError(
            f"trainer.devices={format_value(devices)}, but torchrun started {_plural(world.local_size, 'process', 'es')} "
            f"on this machine. Leave trainer.devices out, or type torchrun --nproc-per-node={count}."
        )
    if nodes not in ("auto", world.nodes):
        raise ConfigError(
            f"trainer.num_nodes={nodes}, but torchrun runs on {_plural(world.nodes, 'machine')}. "
            f"Leave trainer.num_nodes out, or type torchrun --nnodes={nodes}."
        )


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
                f"trainer.devices={format_value(devices)}, but torch has {_plural(gpus, 'GPU')} here. "
                "Set trainer.devices=auto, or trainer.accelerator=cpu."
            )


def trains_on_cuda(config: TrainerConfig) -> bool:
    """Whether Lightning uses CUDA for this accelerator."""
    import torch

    return config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _check_alone(nodes: Any) -> None:
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
            "or use SLURM (python -m imgrec.slurm --help)."
        )


def _check_slurm(config: TrainerConfig, world: World, count: int | None) -> None:
    nodes, devices = config.num_nodes, format_value(config.devices)
    if world.local_size * world.nodes != world.size:
        spread = os.environ.get("SLURM_STEP_TASKS_PER_NODE")
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE={spread}: expected as many tasks on each node. "
            f"Write #SBATCH --nodes={world.nodes} --ntasks-per-node={-(-world.size // world.nodes)}."
        )
    if count is not None and count != world.local_size:
        raise ConfigError(
            f"trainer.devices={devices}, but SLURM started {_plural(world.local_size, 'task')} on this node. "
            f"Leave trainer.devices out, or write #SBATCH --ntasks-per-node={count}."
        )
    if nodes not in ("auto", world.nodes):
        raise ConfigError(
            f"trainer.num_nodes={nodes}, but SLURM started this job on {_plural(world.nodes, 'node')}. "
            f"Leave trainer.num_nodes out, or write #SBATCH --nodes={nodes}."
        )
    if world.size > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:  # Lightning's SLURMEnvironment needs it
        raise ConfigError(
            f"SLURM_NTASKS={world.size} without --ntasks-per-node. "
            f"Write #SBATCH --ntasks-per-node={world.local_size} instead of --ntasks."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = len([gpu for gpu in visible.split(",") if gpu])
    if config.accelerator not in ("cpu", "mps") and gpus and count is None and gpus != world.local_size:
        raise ConfigError(
            f"SLURM started {_plural(world.local_size, 'task')} on this node, but each has {_plural(gpus, 'GPU')} "
            f"(CUDA_VISIBLE_DEVICES={visible}). Write #SBATCH --ntasks-per-node=N --gpus-per-node=N with the same N, "
            f"or set trainer.devices={world.local_size}."
        )


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}{ending if count != 1 else ''}"


def wanted_processes(config: TrainerConfig) -> int:
    """The number of processes, one per device of this host, for a run that a plain command started. 1: no launcher."""
    if config.devices != "auto":
        return len(config.devices) if isinstance(config.devices, list) else config.devices
    if config.accelerator in ("cpu", "mps"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


class LightningDevices(NamedTuple):
    """Arguments of Lightning's Trainer."""

    devices: int | str | list[int]
    num_nodes: int
    strategy: Literal["auto", "ddp", "fsdp"]


def lightning_devices(config: TrainerConfig, world: World) -> LightningDevices:
    """The arguments for the Trainer of this process."""
    devices, strategy = config.devices, config.strategy
    if world.size == 1:
        alone = world.started_by == "alone"
        return LightningDevices(devices if alone else 1, 1, "auto" if strategy == "ddp" else strategy)
    return LightningDevices(
        devices if isinstance(devices, list) else world.local_size, world.nodes, "ddp" if strategy == "auto" else strategy
    )
