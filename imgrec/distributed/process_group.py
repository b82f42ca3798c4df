"""The process group of a run, and which rank prints an error. Imports no torch before `connect`."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from imgrec.config.schema import TrainerConfig
from imgrec.distributed import signals
from imgrec.distributed.device_checks import check_world
from imgrec.distributed.ports import address_here, check_gloo_interface, store_socket
from imgrec.distributed.watchdog import end_process
from imgrec.distributed.world import World, main_address, read_world
from imgrec.errors import ConfigError, Died, ExitCode, ImgrecError, Stopped, first_line, first_names

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

CONNECTED = "connected"
STOP_GRACE_S = 1.0  # a rank that was stopped waits this long for the others to read it
ERROR_GRACE_S = 2.0  # a rank that failed waits this long for the others to report whether they failed too
ANSWER_S = 2.0  # torch's own limit has this long to come first
LATER_S = 30.0  # the heartbeat ends a hanging collective before its timeout, with a line; nccl would abort without one

_T = TypeVar("_T")


class NoFirstRank(ConfigError):
    """Rank 0 does not answer, so that another rank of its machine has to say so."""


_stores: "list[Store]" = []  # the store of the connected ranks, once they are; it lives in rank 0 or in torchrun


def connected_world(config: TrainerConfig) -> World:
    """The world of this process, checked against the config, with all its ranks connected."""
    world = read_world()
    check_world(config, world)
    connect(world, timeout_s=config.timeout_s)
    return world


def connect(world: World, *, timeout_s: float) -> None:
    """Make the process group, which Lightning then uses: gloo on the CPU, nccl on GPUs; none for one process.

    ConfigError where a rank starts more than `timeout_s` after another. Calling it again does nothing.
    """
    if world.size == 1:
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings of lost connections are C++ stacks
    from torch import cuda, distributed

    if distributed.is_initialized():
        return
    check_gloo_interface(world)
    _stores[:] = [_connect_store(world, timeout_s)]
    backend = "cpu:gloo,cuda:nccl" if cuda.is_available() else "gloo"
    limit = timedelta(seconds=timeout_s + LATER_S)
    with collective():
        distributed.init_process_group(backend, store=_stores[0], rank=world.rank, world_size=world.size, timeout=limit)


def _connect_store(world: World, timeout_s: float) -> "Store":
    """The store that all ranks share, once all have connected."""
    from torch.distributed import DistError, PrefixStore  # type: ignore[attr-defined]

    host, port = main_address(world)
    me = f"rank {world.rank} on {socket.gethostname()}"
    advice = (
        f"Read what the other ranks printed, open port {port} of {host} in the firewall, "
        f"or, if they only start slowly, set trainer.timeout_s={2 * timeout_s:g}."
    )
    where = f"{host}:{port}, where the {world.size} ranks connect"
    end, listens = time.monotonic() + timeout_s, world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        if listens:
            tcp = _host_store(host, port, world, timeout_s)
        else:
            no_answer = NoFirstRank(
                f"{me} got no answer of rank 0 from {where}, within {timeout_s:g} s. "
                f"If another server listens there, set MASTER_PORT on all of them to a free port. {advice}"
            )
            tcp = _reach_store(host, port, world, timeout_s, no_answer)
    except socket.gaierror as error:
        raise ConfigError(
            f"MASTER_ADDR={host} in the environment of {me}: that host is not known there. "
            "Set it to the name of rank 0's machine, or to its address."
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"{me} cannot listen on {where}: {reason}. Set MASTER_PORT on all of them to a free port.") from error
    store = PrefixStore(f"imgrec/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", tcp)
    try:
        store.set(f"host/{world.rank}", "")
        own = CONNECTED if store.add("connected", 1) == world.size else ""
        # The first that is no longer "" is the outcome for all: the last rank has connected, or one was stopped.
        while not (outcome := store.compare_set("outcome", "", own or signals.stop_reason() or "").decode()):
            if time.monotonic() >= end:
                missing = [rank for rank in range(world.size) if not store.check([f"host/{rank}"])]
                raise ConfigError(
                    f"{world.size - len(missing)} of {world.size} ranks connected to {host}:{port} within {timeout_s:g} s; "
                    f"missing: rank {first_names(missing, 8)} (message of {me}). {advice}"
                )
            time.sleep(0.02 if world.size <= 16 else 0.5)  # seconds; thousands of ranks must not overload the store
    except DistError as error:
        raise NoFirstRank(f"{me} lost its connection to {host}:{port} before all ranks had connected. {advice}") from error
    if outcome != CONNECTED:
        time.sleep(STOP_GRACE_S if listens else 0)  # the store may live in this process, and the others read it
        raise _stopped(outcome)
    return store


def _host_store(host: str, port: int, world: World, timeout_s: float) -> "Store":
    """The store, in this process. OSError where it cannot listen."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = store_socket(host, port, world)
    address, limit = address_here(listener), timedelta(seconds=timeout_s)
    return TCPStore(address, port, world.size, True, limit, wait_for_workers=False, master_listen_fd=listener.detach())


def _reach_store(host: str, port: int, world: World, timeout_s: float, no_answer: NoFirstRank) -> "Store":
    """The store of another process. socket.gaierror where the host is not known, else `no_answer` after `timeout_s`."""
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    end = time.monotonic() + timeout_s
    try:
        _wait_for(host, port, end, lambda: _say_unknown(host, world, timeout_s))
        with _ended_at(end, no_answer):
            return TCPStore(host, port, world.size, False, timedelta(seconds=timeout_s), wait_for_workers=False)
    except socket.gaierror:
        raise
    except (DistError, OSError) as error:
        raise no_answer from error


def _wait_for(host: str, port: int, end: float, unknown: Callable[[], None] = lambda: None) -> None:
    """Wait until the port is open, as signals do not end the store's own wait. OSError at time.monotonic() `end`.

    unknown: called once where the host is not known, as that of a container is not before it has started.
    """
    said = False
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) and not said:
                said = True
                unknown()
            if (reason := signals.stop_reason()) is not None:  # where the port is open, the others are told
                raise _stopped(reason) from None
            if time.monotonic() >= end:
                raise
            time.sleep(0.1)


def _say_unknown(host: str, world: World, timeout_s: float) -> None:
    if world.local_rank == 0:
        here = socket.gethostname()
        print(f"imgrec: MASTER_ADDR={host} is not known on {here}; waiting for it, up to {timeout_s:g} s.", file=sys.stderr)


@contextmanager
def _ended_at(end: float, error: ImgrecError) -> Iterator[None]:
    """End this process, with the error, if the block goes on after time.monotonic() `end`. stderr is /dev/null in the block.

    For the store's wait, which no signal interrupts: torch waits for ever for an answer of another server at the port,
    and of one that answers it prints C++ frames.
    """
    stderr = os.dup(2)

    def give_up() -> None:
        os.dup2(stderr, 2)
        end_process(error_line(error), ExitCode.REFUSED)

    timer = threading.Timer(max(0.0, end - time.monotonic()) + ANSWER_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        timer.cancel()
        timer.join()
        os.dup2(stderr, 2)
        os.close(stderr)


def _stopped(reason: str) -> Stopped:
    return Stopped(f"stopped by {reason} before all ranks had connected. Start the same command again.")


@contextmanager
def collective() -> Iterator[None]:
    """Around what all ranks do together while there is no heartbeat, which says more: Died where one of them is gone."""
    try:
        yield
    except RuntimeError as error:  # gloo's, NCCL's, DistError
        raise Died(
            f"lost the connection to another rank: {first_line(error)}. Read what the others printed, then start the same command "
            "again. If it never connects, set GLOO_SOCKET_IFNAME to the network interface between the machines."
        ) from error


def on_first_rank(function: Callable[[], _T]) -> _T:
    """Call `function` on rank 0; returns its result, or raises its ImgrecError, on all ranks. Needs `connect`."""
    world = read_world()
    if world.size == 1:
        return function()
    from torch import distributed

    message: list[Any] = [None]
    if world.rank == 0:
        try:
            message = [function()]
        except ImgrecError as error:
            message = [error]
    with collective():
        distributed.broadcast_object_list(message)
    if isinstance(message[0], ImgrecError):
        raise message[0]
    result: _T = message[0]
    return result


def all_gather(value: _T) -> list[_T]:
    """The value of each rank, on all of them. Needs `connect`."""
    values = [value] * (size := read_world().size)
    if size > 1:
        from torch import distributed

        with collective():
            distributed.all_gather_object(values, value)
    return values


def error_line(error: ImgrecError | Died) -> str | None:
    """The line that this rank prints for an error. Of the ranks that fail one prints, if it can rank 0; others get None.

    Ranks other than 0 add their number. The heartbeat ends those that did not fail.
    """
    try:
        world = read_world()
    except ConfigError:  # `error` itself
        return str(error)
    if world.size == 1 or world.started_by == "imgrec":
        return str(error)
    if not _stores:
        speaker = 1 if isinstance(error, NoFirstRank) and world.rank == world.local_rank else 0  # of rank 0's machine, the others
        return str(error) if world.local_rank == speaker else None
    from torch.distributed import DistError

    store = _stores[0]
    line = f"{str(error).rstrip('.')} (rank {world.rank} on {socket.gethostname()})."
    try:
        if world.rank == 0:
            prints = store.add("prints", 1) == 1
            store.set("failed/0", str(error))
            time.sleep(ERROR_GRACE_S)  # the store may live in this process, and the others read it
            return str(error) if prints else None
        end = time.monotonic() + ERROR_GRACE_S
        while not store.check(["failed/0"]) and time.monotonic() < end:  # its wait() would warn on stderr
            time.sleep(0.05)
        return None if store.check(["failed/0"]) or store.add("prints", 1) > 1 else line
    except DistError:  # the store ended with rank 0
        return line
