"""What a training uses of torch beyond its documented interface, and errors of torch that have no class of their own.

Checked with torch 2.14.1. `prepare_trainer` of lightning_compat looks TORCH_NAMES up before a run starts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from imgrec.errors import ConfigError, first_line

TORCH_NAMES: tuple[tuple[type, str], ...] = (
    (DistributedDataParallel, "_remove_autograd_hooks"),
    (Variable, "_execution_engine.queue_callback"),
)


def compile_in_place(net: nn.Module, *, dynamic: bool | None) -> None:
    """What net.compile does; torch.compile(net) would rename every key of its state dict.

    torch 2.11 compiles no frame of torch.nn itself, and so nothing of a network that is an nn.Sequential. This frame is ours.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return net._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    net._compiled_call_impl = torch.compile(call, dynamic=dynamic)


@contextmanager
def compiling() -> Iterator[None]:
    """ConfigError for a network, or a machine, with which torch.compile fails in the block. Its errors have no public base."""
    try:
        yield
    except TorchDynamoException as error:
        reason = first_line(getattr(error, "inner_exception", error))
        raise ConfigError(
            f"trainer.compile=true: the network cannot be compiled here: {reason}. Set trainer.compile=false."
        ) from error


@contextmanager
def deterministic_errors() -> Iterator[None]:
    """ConfigError for an operation in the block that torch refuses with trainer.deterministic. Its error is a plain RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise ConfigError(
            f"trainer.deterministic=true: the network uses {operation}, which gives other bits each time on this device. "
            "Set trainer.deterministic=false, or another model: model=resnet."
        ) from error


def after_gradients(loss: Tensor, call: Callable[[], None]) -> None:
    """Call it in the backward pass from `loss`, once its gradients are computed and before DDP waits for their exchange.

    Calls that are queued in a backward pass run at its end in their order, and DDP queues that wait with the last gradient.
    """
    loss.register_hook(lambda gradient: Variable._execution_engine.queue_callback(call))  # type: ignore[no-untyped-call]


def remove_ddp_hooks(model: DistributedDataParallel) -> None:
    """Remove DDP's hooks in backward before its module is wrapped again: the old buckets would be reduced as well."""
    model._remove_autograd_hooks()  # type: ignore[no-untyped-call]
