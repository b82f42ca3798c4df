"""Which processes and devices the config asks for, and whether that fits what torchrun or SLURM started. Imports no torch before GPUs are counted."""

import os
from typing import Any, Literal, NamedTuple

from imgrec.config.annotations import format_value
from imgrec.config.schema import TrainerConfig
from imgrec.distributed.world import World, env_number
from imgrec.errors import ConfigError


def check_world(config: TrainerConfig, world: World) -> None:
    """ConfigError where the config and those who started this process contradict each other: what to set, or which line to change."""
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
            f"trainer.devices={format_value(devices)}, but torchrun started {_many(world.local_size, 'process', 'es')} "
            f"on this machine. Leave trainer.devices out, or type torchrun --nproc-per-node={count}."
        )
    if nodes not in ("auto", world.nodes):
        raise ConfigError(
            f"trainer.num_nodes={nodes}, but torchrun runs on {_many(world.nodes, 'machine')}. "
            f"Leave trainer.num_nodes out, or type torchrun --nnodes={nodes}."
        )


def check_accelerator(config: TrainerConfig) -> None:
    """ConfigError for an accelerator, or a number of GPUs, that this machine does not have; before the data is read."""
    import torch

    gpus, devices = torch.cuda.device_count(), config.devices
    if config.accelerator == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("trainer.accelerator=mps: torch finds no Apple GPU. Set trainer.accelerator=auto.")
    if config.accelerator in ("gpu", "cuda") and not gpus and not torch.backends.mps.is_available():
        raise ConfigError(f"trainer.accelerator={config.accelerator}: torch finds no GPU. Set trainer.accelerator=auto.")
    if config.accelerator in ("auto", "gpu", "cuda") and gpus and devices != "auto":
        most = max(devices) + 1 if isinstance(devices, list) else devices
        if most > gpus:
            raise ConfigError(
                f"trainer.devices={format_value(devices)}, but torch finds {_many(gpus, 'GPU')}. "
                "Set trainer.devices=auto, or trainer.accelerator=cpu."
            )


def trains_on_cuda(config: TrainerConfig) -> bool:
    """Whether Lightning takes CUDA for this accelerator."""
    import torch

    return config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _check_alone(nodes: Any) -> None:
    tasks, machines = (env_number(name, 1) for name in ("SLURM_NTASKS", "SLURM_NNODES"))
    if "SLURM_JOB_ID" in os.environ and "SLURM_PTY_PORT" not in os.environ and (tasks > 1 or machines > 1):
        raise ConfigError(
            f"SLURM_NTASKS={tasks} SLURM_NNODES={machines}, but this process was started without srun, so once. "
            "Write srun before python, or #SBATCH --nodes=1 --ntasks=1."
        )
    if nodes != "auto" and nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes}, but this process was started alone. "
            f"Type NODES={nodes} NODE_RANK=0 MASTER=HOST launch/torchrun.sh ... on each machine, or use SLURM (python -m imgrec.slurm --help)."
        )


def _check_slurm(config: TrainerConfig, world: World, count: int | None) -> None:
    nodes, devices = config.num_nodes, format_value(config.devices)
    if world.local_size * world.nodes != world.size:
        spread = os.environ.get("SLURM_STEP_TASKS_PER_NODE")
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE={spread}: every node must have as many tasks. "
            f"Write #SBATCH --nodes={world.nodes} --ntasks-per-node={-(-world.size // world.nodes)}."
        )
    if count is not None and count != world.local_size:
        raise ConfigError(
            f"trainer.devices={devices}, but SLURM started {_many(world.local_size, 'task')} on this node. "
            f"Leave trainer.devices out, or write #SBATCH --ntasks-per-node={count}."
        )
    if nodes not in ("auto", world.nodes):
        raise ConfigError(
            f"trainer.num_nodes={nodes}, but SLURM started this job on {_many(world.nodes, 'node')}. "
            f"Leave trainer.num_nodes out, or write #SBATCH --nodes={nodes}."
        )
    given = os.environ.get("SLURM_NTASKS_PER_NODE")
    if world.size > 1 and given is None:  # Lightning's SLURMEnvironment insists
        raise ConfigError(
            f"SLURM_NTASKS={world.size} without --ntasks-per-node. Write #SBATCH --ntasks-per-node={world.local_size} instead of --ntasks."
        )
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    seen = len([one for one in gpus.split(",") if one])
    if config.accelerator not in ("cpu", "mps") and seen and count is None and seen != world.local_size:
        raise ConfigError(
            f"SLURM started {_many(world.local_size, 'task')} on this node, but each sees {_many(seen, 'GPU')} (CUDA_VISIBLE_DEVICES={gpus}). "
            f"Write #SBATCH --ntasks-per-node=N --gpus-per-node=N with the same N, or set trainer.devices={world.local_size}."
        )


def _many(count: int, what: str, ending: str = "s") -> str:
    return f"{count} {what}{ending if count != 1 else ''}"


def wanted_processes(config: TrainerConfig) -> int:
    """Processes that a run started alone asks for on this host: one a device. 1: it trains in this very process."""
    if config.devices != "auto":
        return len(config.devices) if isinstance(config.devices, list) else config.devices
    if config.accelerator in ("cpu", "mps"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


class LightningDevices(NamedTuple):
    """What Lightning's Trainer is told about the devices of a process."""

    devices: int | str | list[int]
    num_nodes: int
    strategy: Literal["auto", "ddp", "fsdp"]


def lightning_devices(config: TrainerConfig, world: World) -> LightningDevices:
    """devices, num_nodes and strategy for the Trainer of this process."""
    devices, strategy = config.devices, config.strategy
    if world.size == 1:
        alone = world.started_by == "alone"
        return LightningDevices(devices if alone else 1, 1, "auto" if strategy == "ddp" else strategy)
    return LightningDevices(
        devices if isinstance(devices, list) else world.local_size, world.nodes, "ddp" if strategy == "auto" else strategy
    )
