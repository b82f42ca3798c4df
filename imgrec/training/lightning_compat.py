"""All that imgrec uses of PyTorch Lightning beyond its documented interface, each part with its reason.

Checked with pytorch-lightning 2.6.6 and torch 2.14.1. `prepare_trainer` looks every name up before a run starts, those of
torch_compat too, so that a version which renamed one is refused with an error; tests/test_lightning_compat.py tests each
name and its behaviour.

One assumption has no name to look up. StepBoundary (imgrec.training.step_boundary) relies on Lightning's order of
hooks: a batch is fetched and on the device before on_train_batch_start, `completed` is increased after
on_train_batch_end, and a validation runs after that and before on_train_epoch_end.
"""

import logging
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from operator import attrgetter
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim.swa_utils import AveragedModel

from imgrec.errors import ImgrecError
from imgrec.training.torch_compat import TORCH_NAMES

SUPPORTED = "pytorch-lightning>=2.6.4,<2.7"

# Looked up on the Trainer of a run.
TRAINER_NAMES = (
    "_signal_connector.register_signal_handlers",
    "fit_loop.epoch_loop._broadcast_sigterm_tensor",
    "fit_loop.epoch_loop._batches_that_stepped",
    "fit_loop.epoch_loop._build_kwargs",
    "fit_loop.restarting",
    "fit_loop.epoch_loop.val_loop._data_source.is_defined",
    *(f"fit_loop.epoch_progress.current.{count}" for count in ("ready", "started", "processed")),
    *(f"fit_loop.epoch_loop.batch_progress.current.{count}" for count in ("ready", "completed")),
)
# Messages that say less than the start screen, or something wrong about imgrec.
KNOWN_WARNINGS = (
    "treespec, LeafSpec",  # Lightning 2.6 under torch 2.15
    "recommended to use `self.log",  # of sync_dist=True: the sums are of all ranks already
    "does not have many workers",  # the start screen names the workers, Throughput measures the wait
    "exists and is not empty",  # the checkpoint directory of a resumed run
    "is smaller than the logging interval",
    "resuming from a checkpoint that ended before the epoch ended",  # the data's order starts where the run was stopped
    "srun` command is available on your system but is not used",
    # A float16 scaler may skip the first optimizer step; Lightning keeps the order of calls.
    r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`",
)
STEP_HOOKS = (  # of callbacks and modules, which Lightning calls in each step whether they do anything or not
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
COUNTS = ("ready", "started", "processed", "completed")  # of one of Lightning's progress trackers

Plain = dict[str, Any]  # tensors, numbers and strings: what loads with weights_only=True


class UnsupportedVersionError(ImgrecError):
    """An installed package lacks something that imgrec needs."""


def prepare_trainer(trainer: pl.Trainer) -> None:
    """Before a run: raise UnsupportedVersionError for a missing name, and leave signals to imgrec.distributed.signals.

    Lightning's SIGTERM handler broadcasts, while the other ranks may be in another collective, and before each batch
    Lightning sends a flag to the device and waits for it. No setting turns these off:
    SLURMEnvironment(auto_requeue=False) only stops the requeueing.
    """
    for path in TRAINER_NAMES:
        _look_up(trainer, path)
    for owner, path in TORCH_NAMES:
        _look_up(owner, path)
    _look_up(Strategy, "_setup_model")
    _look_up(WeightAveraging(), "_average_model")
    set_loop_position({"fit_loop": trainer.fit_loop.state_dict()}, LoopPosition(0, 0, "train", 0), micro_batches=1, accumulate=1)
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    # Lightning inspects the signature of training_step in each step: 10 us.
    trainer.fit_loop.epoch_loop._build_kwargs = _step_arguments  # type: ignore[method-assign]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        skip_unused_hooks(callback, pl.Callback)


def _step_arguments(kwargs: OrderedDict[str, Any], batch: Any, batch_idx: int) -> OrderedDict[str, Any]:
    kwargs.update(batch=batch, batch_idx=batch_idx)
    return kwargs


def skip_unused_hooks(owner: Any, base: type) -> None:
    """Let Lightning pass over the hooks of a step that `owner` inherits from `base` unchanged: it calls what is callable.

    Each call costs 1.2 us, and twelve callbacks have seventy in a step. A hook that is overridden is called as before.
    """
    for hook in STEP_HOOKS:
        if not is_overridden(hook, owner, base):
            setattr(owner, hook, None)


def ask_once(trainer: pl.Trainer) -> None:
    """At the start of a fit: Lightning asks in each step which hooks the data module overrides, 8 times at 1.7 us."""
    _look_up(trainer, "_data_connector._datahook_selector.get_instance")
    hooks, loader = trainer._data_connector._datahook_selector, trainer.fit_loop.epoch_loop.val_loop._data_source
    hooks.get_instance = lru_cache(hooks.get_instance)  # type: ignore[union-attr, method-assign]
    loader.is_defined = lru_cache(loader.is_defined)  # type: ignore[method-assign]


class QuickHooks:
    """Beside LightningModule: Lightning notes the name of a hook before and after it, 35 times a step.

    torch's modules look at each value that is set, whether it is a parameter: 1.3 us.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class NoProfiler(PassThroughProfiler):
    """Lightning's profiler that does nothing does it in a new context for each hook: 1 us."""

    _nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


@contextmanager
def driver_asked(trainer: pl.Trainer) -> Iterator[None]:
    """On the CPU: Adam asks in each step for a GPU, of the driver in this block, 1 us, and not of NVML, 124 us.

    Importing Lightning sets the variable for that, so that the question before a fork opens no CUDA context. With a GPU in use
    torch remembers the answer.
    """
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.get(name)
    if trainer.strategy.root_device.type == "cpu":
        os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


def _look_up(owner: Any, path: str) -> None:
    try:
        attrgetter(path)(owner)
    except AttributeError as error:
        kind = owner if isinstance(owner, type) else type(owner)
        raise _missing(f"{kind.__name__}.{path}") from error


def _missing(name: str) -> UnsupportedVersionError:
    return UnsupportedVersionError(
        f"pytorch-lightning {version('pytorch-lightning')} with torch {version('torch')} has no {name}, which imgrec uses. "
        f"Type: pip install '{SUPPORTED}'"
    )


def silence_known_warnings() -> None:
    """Leave out what KNOWN_WARNINGS lists, and Lightning's tips and device lines."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", f"(?s).*{message}")


# The position in the run


@dataclass(frozen=True)
class LoopPosition:
    """The position of a checkpoint in its run, always at a step boundary."""

    epoch: int  # finished epochs
    done: int  # global batches done in the next one
    stage: Literal["train", "validate", "end"]  # validate: after the epoch's steps; end: nothing is left to train
    step: int  # optimizer steps so far


def count_micro_batches(trainer: pl.Trainer) -> int:
    """Micro-batches that are complete in this epoch. Lightning has no public count of them within an epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def read_loop_position(trainer: pl.Trainer) -> LoopPosition:
    """The position at a step boundary, or in a validation, which a resumed run repeats from its first batch."""
    completed = count_micro_batches(trainer)
    whole = completed >= trainer.num_training_batches
    done = -(-completed // trainer.accumulate_grad_batches) if whole else completed // trainer.accumulate_grad_batches
    epochs = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    return LoopPosition(epochs, done, "validate" if whole else "train", trainer.global_step)


def is_within_epoch(trainer: pl.Trainer) -> bool:
    """Whether all hooks at the start of an epoch have run and none at its end."""
    epoch = trainer.fit_loop.epoch_progress.current
    return bool(epoch.processed != epoch.ready == epoch.started)  # type: ignore[attr-defined]


def is_within_batch(trainer: pl.Trainer) -> bool:
    """Whether a training batch has begun and is not complete."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    return batches.ready != batches.completed


def set_loop_position(loops: Plain, position: LoopPosition, *, micro_batches: int, accumulate: int) -> None:
    """Write a position into the "loops" of a checkpoint, for epochs of `micro_batches`, `accumulate` of them a step.

    The number of micro-batches depends on the world size, so the saved counts are replaced. Lightning itself would skip
    the validation of a run that was stopped in it, and mistake the first step of an epoch for the end of the last one.
    """
    fit = loops["fit_loop"]
    done = micro_batches if position.stage == "validate" else min(position.done * accumulate, micro_batches)
    begun = position.epoch + (done > 0)  # an epoch with no batch done begins again, with its hooks
    for count in ("total", "current"):
        epochs = {"ready": begun, "started": begun, "processed": position.epoch, "completed": position.epoch}
        _update(fit, "epoch_progress", count, **epochs)
    batches = "epoch_loop.batch_progress"
    _update(fit, batches, is_last_batch=position.stage == "validate")
    _update(fit, batches, "total", **dict.fromkeys(COUNTS, position.epoch * micro_batches + done))
    _update(fit, batches, "current", **dict.fromkeys(COUNTS, done))
    # Validation counts as interrupted, before its first batch, or as not begun.
    interrupted = int(position.stage == "validate")
    validation = "epoch_loop.val_loop.batch_progress"
    _update(fit, validation, is_last_batch=False)
    _update(fit, validation, "current", **dict.fromkeys(COUNTS, 0))
    _update(fit, validation, "total", ready=interrupted, started=interrupted, processed=0, completed=0)
    # The x-axis of Lightning's loggers. It counts a step when the validation after it is over.
    _update(fit, "epoch_loop.state_dict", _batches_that_stepped=position.step - interrupted)


def _update(state: Plain, *path: str, **values: int) -> None:
    for key in path:
        if not isinstance(state.get(key), dict):
            raise _missing(f"{key} in the loops of its checkpoints")
        state = state[key]
    for name in values.keys() - state.keys():
        raise _missing(f"{path[-1]}.{name} in the loops of its checkpoints")
    state.update(values)


def forget_restart(trainer: pl.Trainer) -> None:
    """At the start of a validation: Lightning would skip ReduceLROnPlateau after an epoch that was resumed."""
    trainer.fit_loop.restarting = False


# The average of the weights (EMA)


def average_model(callback: WeightAveraging) -> AveragedModel:
    """The averages of a callback that is set up for fit."""
    assert callback._average_model is not None
    return callback._average_model


def find_averages(trainer: pl.Trainer) -> Iterator[nn.Module]:
    """The copies of the module with averaged weights, which FSDP shards. WeightAveraging has no interface for that."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            yield callback._average_model.module


def restore_trained_weights(trainer: pl.Trainer) -> None:
    """Before a stop in a validation: swap the trained weights back in, by the undocumented hook at its end."""
    if trainer.validating:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                callback.on_validation_epoch_end(trainer, trainer.lightning_module)


class UnwrappedDDP(DDPStrategy):
    """DDPStrategy whose network is not wrapped in DDP: it is set up as by the base class of Lightning's strategies.

    DDPStrategy.setup would also broadcast the weights before a test, which sharded ones do not allow.
    """

    def setup(self, trainer: pl.Trainer) -> None:
        super(DDPStrategy, self).setup(trainer)

    def _setup_model(self, model: nn.Module) -> nn.Module:  # type: ignore[override]
        return model
