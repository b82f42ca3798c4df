"""The process group of a run: how its processes meet, and what they say with one voice. Imports no torch before `connect`."""

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from imgrec.config.schema import TrainerConfig
from imgrec.distributed import signals
from imgrec.distributed.device_checks import check_world
from imgrec.errors import ConfigError, ImgrecError, Stopped

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store
from imgrec.distributed.world import World, cluster_environment, world

LINGER_S = 2.0  # how long a process that failed gives the others to say whether they failed alike

_T = TypeVar("_T")


_stores: "list[Store]" = []  # the one of the connected processes, once they are; the first of them or torchrun keeps it
LATER_S = 30.0  # a collective that waits in vain is ended by the heartbeat, with a line that names the rank; nccl would abort without one


def connected_world(config: TrainerConfig) -> World:
    """Where this process stands, after the config was compared with who started it, and all processes of the run have met."""
    here = world()
    check_world(config, here)
    connect(here, timeout_s=config.timeout_s)
    return here


def connect(world: World, *, timeout_s: float) -> None:
    """One process group of all processes, before Lightning makes its own: gloo on the CPU, nccl on GPUs. A lone process needs none.

    The processes may come `timeout_s` apart; after that a ConfigError says how many came. Calling it again does nothing.
    """
    if world.size == 1:
        return
    from torch import cuda, distributed

    if distributed.is_initialized():
        return
    _stores[:] = [_meet(world, timeout_s)]
    backend = "cpu:gloo,cuda:nccl" if cuda.is_available() else "gloo"
    limit = timedelta(seconds=timeout_s + LATER_S)
    distributed.init_process_group(backend, store=_stores[0], rank=world.rank, world_size=world.size, timeout=limit)


def _meet(world: World, timeout_s: float) -> "Store":
    """The store that all processes share, once all have come."""
    from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]

    lightning = cluster_environment(world)
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
    if (reason := signals.stop_reason()) is not None:
        raise Stopped(f"stopped by {reason} before all processes had come. Start the same command again.")


def on_first_rank(first: Callable[[], _T]) -> _T:
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
    found: _T = told[0]
    return found


def error_line(error: ImgrecError) -> str | None:
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
