"""The loss, the learning rate and the norms of gradient, weights and update by step."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import DummyLogger, Logger
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from imgrec.distributed.sharding import is_sharded
from imgrec.training.callbacks.history import History
from imgrec.training.module import Classifier

STEP_FIGURES = ("train/step_loss", "optim/gradient_norm", "optim/weight_norm", "optim/update_ratio")


class StepMetrics(pl.Callback):
    """Logs STEP_FIGURES and optim/lr every trainer.log_every_steps, and optim/lr each epoch; with logger=none it logs nothing.

    `loss`: of the newest step; where several ranks train, of the newest that was logged, as the ranks have to add it up.
    The norms are of all weights that the step trains: of the gradient before it is clipped, of the weights before the
    step, and of what the step changes relative to these. No step waits for a GPU: figures are written when they have come.
    """

    loss: Tensor | None = None

    def __init__(self, *, history: History) -> None:
        self.history = history
        self._norms: StepNorms | None = None  # of the step under way, where it is logged
        self._pending: list[tuple[int, float, Tensor, torch.cuda.Event | None]] = []  # step, rate, STEP_FIGURES

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, Classifier)
        if self._is_due(trainer, trainer.global_step + 1) and (_logger(trainer) or is_sharded(pl_module.net)):
            self._norms = StepNorms(trainer, optimizer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, Classifier)
        step = trainer.global_step
        if step != self._step:  # it is complete
            self._step = step
            due = self._is_due(trainer, step)
            if due or trainer.world_size == 1:
                self.loss = pl_module.step_loss()
            if due and self._norms is not None:
                assert self.loss is not None
                self._note(step, torch.stack([self.loss.float(), *self._norms.of_update()]))
                self._norms = None
        self.write(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write(trainer, wait=True)
        if (logger := _logger(trainer)) and not self._is_due(trainer, trainer.global_step):
            logger.log_metrics({"optim/lr": self.history.rate}, trainer.global_step)

    def write(self, trainer: pl.Trainer, *, wait: bool = False) -> None:
        """Log the figures that have come from the device, or all after waiting for them, as before a save."""
        while self._pending:
            step, rate, figures, copied = self._pending[0]
            if copied is not None and not wait and not copied.query():  # type: ignore[no-untyped-call]
                return
            if copied is not None:
                copied.synchronize()
            self._pending.pop(0)
            if logger := _logger(trainer):
                logger.log_metrics({**dict(zip(STEP_FIGURES, figures.tolist(), strict=True)), "optim/lr": rate}, step)

    def _note(self, step: int, figures: Tensor) -> None:
        copied = None
        if figures.device.type == "cuda":
            figures = figures.to("cpu", non_blocking=True)  # pinned memory, where the values are after the event
            copied = torch.cuda.current_stream().record_event()
        self._pending.append((step, self.history.rate, figures, copied))

    def _is_due(self, trainer: pl.Trainer, step: int) -> bool:
        return bool(step % trainer.log_every_n_steps == 0)  # type: ignore[attr-defined]


class StepNorms:
    """The norms of a step, taken before it and completed after it: a copy of the weights is held meanwhile."""

    @torch.no_grad()
    def __init__(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._weights = [parameter.detach() for parameter in parameters if parameter.grad is not None]
        self._before = [weight.clone() for weight in self._weights]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.gradient = _total_norm(gradients) / gradient_scale(trainer, optimizer)
        self.weight = _total_norm(self._before)

    @torch.no_grad()
    def of_update(self) -> tuple[Tensor, Tensor, Tensor]:
        """After the step: the norms of gradient and weights, and that of the step's change relative to the weights'."""
        torch._foreach_sub_(self._before, self._weights)
        return self.gradient, self.weight, _total_norm(self._before) / self.weight


def gradient_scale(trainer: pl.Trainer, optimizer: Optimizer) -> Tensor | float:
    """What the gradients are multiplied by before the step: a fused optimizer takes out the scale of 16 bits by itself."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    scale: Tensor = scaler.scale(torch.ones((), device=trainer.strategy.root_device))  # get_scale would wait for the device
    return scale


def _total_norm(tensors: list[Tensor]) -> Tensor:
    """Over all elements, float32 []; of sharded tensors a collective."""
    norm = get_total_norm(tensors)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).float()


def _logger(trainer: pl.Trainer) -> Logger | None:
    logger = trainer.logger
    return None if isinstance(logger, DummyLogger) else logger
