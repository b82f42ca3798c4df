"""The processes of a run: who started them, the group that connects them, and what they say with one voice.

Three ways lead to more than one process: torchrun, SLURM's srun, and a plain command that wants several devices of its host, for which
imgrec.children starts them with torchrun's variables. Lightning's own launcher is never used: it starts its processes from sys.argv.
Imports no torch before `connect`.
"""

import ctypes
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from imgrec import stopping
from imgrec.errors import ConfigError, ImgrecError, Stopped

if TYPE_CHECKING:
    from lightning_fabric.plugins import ClusterEnvironment
    from torch.distributed.distributed_c10d import Store

CHILD = "IMGREC_RUN_DIR"  # set in the processes that imgrec.children starts: the run folder, which their parent chose and locked
NO_STEP = 0xFFFFFFF0  # SLURM's step numbers from here on are no srun: the batch script's, an interactive shell's
LINGER_S = 2.0  # how long a process that failed gives the others to say whether they failed alike

T = TypeVar("T")


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
        size, local_size = number("WORLD_SIZE", least=1), number("LOCAL_WORLD_SIZE", 1, least=1)
        return World(
            rank=number("RANK"),
            size=size,
            local_rank=number("LOCAL_RANK", 0),
            local_size=local_size,
            nodes=max(1, size // local_size),
            started_by="imgrec" if CHILD in env else "torchrun",
        )
    if number("SLURM_STEP_ID", NO_STEP) < NO_STEP and "SLURM_PROCID" in env and "SLURM_PTY_PORT" not in env:
        size = number("SLURM_STEP_NUM_TASKS", number("SLURM_NTASKS", 1))
        tasks = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
        return World(
            rank=number("SLURM_PROCID"),
            size=size,
            local_rank=number("SLURM_LOCALID", 0),
            local_size=tasks[min(number("SLURM_NODEID", 0), len(tasks) - 1)],
            nodes=len(tasks),
            started_by="slurm",
        )
    return World()


def number(name: str, default: int | None = None, *, least: int = 0) -> int:
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


def environment(world: World) -> "ClusterEnvironment":
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


_stores: "list[Store]" = []  # the one of the connected processes, once they are; the first of them or torchrun keeps it
PR_SET_PDEATHSIG = 1  # of prctl(2)
LATER_S = 30.0  # a collective that waits in vain is ended by the heartbeat, with a line that names the rank; nccl would abort without one


def connect(world: World, *, timeout_s: float) -> None:
    """One process group of all processes, before Lightning makes its own: gloo on the CPU, nccl on GPUs. A lone process needs none.

    The processes may come `timeout_s` apart; after that a ConfigError says how many came. Calling it again does nothing.
    """
    from torch import cuda, distributed

    if world.size == 1 or distributed.is_initialized():
        return
    _stores[:] = [_meet(world, timeout_s)]
    backend = "cpu:gloo,cuda:nccl" if cuda.is_available() else "gloo"
    limit = timedelta(seconds=timeout_s + LATER_S)
    distributed.init_process_group(backend, store=_stores[0], rank=world.rank, world_size=world.size, timeout=limit)


def _meet(world: World, timeout_s: float) -> "Store":
    """The store that all processes share, once all have come."""
    from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]

    lightning = environment(world)
    host, port = lightning.main_address, lightning.main_port
    torchrun_keeps_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    me = f"rank {world.rank} on {socket.gethostname()}"
    look = (
        f"Look at what the others printed and whether a firewall closes port {port} of {host}; "
        "where they only start slowly, set a higher trainer.timeout_s."
    )
    keeps = world.rank == 0 and not torchrun_keeps_it
    end, limit = time.monotonic() + timeout_s, timedelta(seconds=timeout_s)
    try:
        if not keeps:
            _wait_for(host, port, end)
        store = PrefixStore(
            f"imgrec/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}",
            TCPStore(host, port, world.size, keeps, limit, wait_for_workers=False),
        )
    except (DistError, OSError) as error:
        what = "cannot listen there" if keeps else f"nobody answered within {timeout_s:g} s"
        raise ConfigError(f"{me} should meet the other {world.size - 1} at {host}:{port}, but {what}. {look}") from error
    try:
        store.set(f"here/{world.rank}", socket.gethostname())
        came = store.add("came", 1)
        while came < world.size and time.monotonic() < end:
            _go_on()
            time.sleep(0.02 if world.size <= 16 else 0.5)  # seconds; thousands must not wear the store out
            came = store.add("came", 0)
    except DistError as error:
        raise ConfigError(
            f"{me} lost {host}:{port}, where the {world.size} processes meet, before all had come. {look}"
        ) from error
    if came < world.size:
        late = [rank for rank in range(world.size) if not store.check([f"here/{rank}"])]
        named = ", ".join(map(str, late[:8])) + (", ..." if len(late) > 8 else "")
        raise ConfigError(
            f"{came} of {world.size} processes came to {host}:{port} within {timeout_s:g} s; missing: rank {named} (says {me}). {look}"
        )
    return store


def _wait_for(host: str, port: int, end: float) -> None:
    """Until somebody listens there; the store's own waiting could not be stopped. OSError at `end`, a time.monotonic()."""
    while True:
        _go_on()
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.1)
        else:
            return


def _go_on() -> None:
    if (reason := stopping.asked()) is not None:
        raise Stopped(f"stopped by {reason} before all processes had come. Start the same command again.")


def end_with_parent() -> None:
    """Let the kernel end this process when the one that started it is gone, however that ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def agreed(first: Callable[[], T]) -> T:
    """What `first` gives on the first process, on all of them; an ImgrecError is raised on all alike. Needs `connect`; alone it is a plain call."""
    here = world()
    if here.size == 1:
        return first()
    from torch import distributed

    told: list[Any] = [None]
    if here.rank == 0:
        try:
            told = [first()]
        except ImgrecError as error:
            told = [error]
    distributed.broadcast_object_list(told)
    if isinstance(told[0], ImgrecError):
        raise told[0]
    found: T = told[0]
    return found


def to_say(error: ImgrecError) -> str | None:
    """The line that this process should show for an error; None where another process speaks: of those that fail one does, the first if it is among them.

    Another one names itself. The heartbeat ends those that did not fail.
    """
    try:
        here = world()
    except ConfigError:  # that is the error
        return str(error)
    if here.size == 1 or here.started_by == "imgrec":
        return str(error)
    if not _stores:
        return str(error) if here.local_rank == 0 else None
    from torch.distributed import DistError

    store = _stores[0]
    line = f"{str(error).rstrip('.')} (rank {here.rank} on {socket.gethostname()})."
    try:
        if here.rank == 0:
            speaks = store.add("speaks", 1) == 1
            store.set("failed/0", str(error))
            time.sleep(LINGER_S)  # the store may live in this process, and the others ask it
            return str(error) if speaks else None
        end = time.monotonic() + LINGER_S
        while not store.check(["failed/0"]) and time.monotonic() < end:  # its wait() would warn on stderr
            time.sleep(0.05)
        return None if store.check(["failed/0"]) or store.add("speaks", 1) > 1 else line
    except DistError:  # the first process took the store along
        return line
