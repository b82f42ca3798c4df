"""Which processes and devices the config asks for, and whether that fits what torchrun or SLURM started. Imports no torch before `wanted` counts GPUs."""

import os
from typing import TYPE_CHECKING, Any

from imgrec.config.annotations import format_value
from imgrec.distributed.world import World, env_number
from imgrec.errors import ConfigError

if TYPE_CHECKING:
    from imgrec.config.schema import Node, RunConfig


OWN_LAUNCHERS = ("spawn", "fork", "notebook", "dp")  # endings of strategies by which Lightning starts processes or threads itself


def check_world(run: "RunConfig", world: World) -> None:
    """ConfigError where the config and those who started this process contradict each other: what to set, or which line to change."""
    devices, nodes, strategy = (run.trainer[key] for key in ("devices", "num_nodes", "strategy"))
    if isinstance(devices, str) and devices != "auto":
        raise ConfigError(f"trainer.devices={devices}: devices takes auto, a number, or a list of device numbers such as [0,1].")
    if isinstance(nodes, str) and nodes != "auto":
        raise ConfigError(f"trainer.num_nodes={nodes}: num_nodes takes auto or a whole number.")
    if str(strategy).endswith(OWN_LAUNCHERS) and strategy not in ("ddp", "fsdp"):
        raise ConfigError(
            f"trainer.strategy={strategy} starts processes in a way that cannot be resumed or watched. Set trainer.strategy=ddp."
        )
    if world.started_by == "alone":
        _check_alone(nodes)
        return
    asked = None if devices == "auto" else len(devices) if isinstance(devices, list) else devices
    if world.started_by == "slurm":
        _check_slurm(run, world, asked)
        return
    if asked is not None and asked != world.local_size:
        raise ConfigError(
            f"trainer.devices={format_value(devices)}, but torchrun started {_many(world.local_size, 'process', 'es')} on this machine. "
            f"Leave trainer.devices out, or type torchrun --nproc-per-node={asked}."
        )
    if nodes not in ("auto", world.nodes):
        raise ConfigError(
            f"trainer.num_nodes={nodes}, but torchrun runs on {_many(world.nodes, 'machine')}. "
            f"Leave trainer.num_nodes out, or type torchrun --nnodes={nodes}."
        )


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


def _check_slurm(run: "RunConfig", world: World, asked: int | None) -> None:
    nodes, devices = run.trainer["num_nodes"], format_value(run.trainer["devices"])
    if world.local_size * world.nodes != world.size:
        spread = os.environ.get("SLURM_STEP_TASKS_PER_NODE")
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE={spread}: every node must have as many tasks. "
            f"Write #SBATCH --nodes={world.nodes} --ntasks-per-node={-(-world.size // world.nodes)}."
        )
    if asked is not None and asked != world.local_size:
        raise ConfigError(
            f"trainer.devices={devices}, but SLURM started {_many(world.local_size, 'task')} on this node. "
            f"Leave trainer.devices out, or write #SBATCH --ntasks-per-node={asked}."
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
    if run.trainer["accelerator"] not in ("cpu", "mps") and seen and asked is None and seen != world.local_size:
        raise ConfigError(
            f"SLURM started {_many(world.local_size, 'task')} on this node, but each sees {_many(seen, 'GPU')} (CUDA_VISIBLE_DEVICES={gpus}). "
            f"Write #SBATCH --ntasks-per-node=N --gpus-per-node=N with the same N, or set trainer.devices={world.local_size}."
        )


def _many(count: int, what: str, ending: str = "s") -> str:
    return f"{count} {what}{ending if count != 1 else ''}"


def wanted_processes(run: "RunConfig") -> int:
    """Processes that a run started alone asks for on this host: one a device. 1: it trains in this very process."""
    devices, accelerator = run.trainer["devices"], run.trainer["accelerator"]
    if devices != "auto":
        return len(devices) if isinstance(devices, list) else int(devices)
    if accelerator in ("cpu", "mps"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def one_device(run: "RunConfig") -> int | list[int]:
    """trainer.devices for a command that needs but one of them."""
    devices = run.trainer["devices"]
    return devices[:1] if isinstance(devices, list) else 1


def trainer_devices(run: "RunConfig", world: World) -> "Node":
    """devices, num_nodes and strategy for the Trainer of this process."""
    devices, strategy = run.trainer["devices"], run.trainer["strategy"]
    if world.size == 1:
        alone = world.started_by == "alone"
        return {"devices": devices if alone else 1, "num_nodes": 1, "strategy": "auto" if strategy == "ddp" else strategy}
    return {
        "devices": devices if isinstance(devices, list) else world.local_size,
        "num_nodes": world.nodes,
        "strategy": "ddp" if strategy == "auto" else strategy,
    }
