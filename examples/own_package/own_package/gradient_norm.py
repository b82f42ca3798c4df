"""A callback with a state: the size of the gradient."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from imgrec.errors import ConfigError


class GradientNorm(Callback):
    """Logs train/gradient_norm: the mean norm over the steps of an epoch that are looked at, before clipping."""

    def __init__(self, *, every_steps: int) -> None:
        if every_steps < 1:
            raise ConfigError(
                f"callbacks.gradient_norm.every_steps={every_steps}: expected 1 or more. "
                "Set callbacks.gradient_norm.every_steps=10."
            )
        self.every_steps = every_steps
        self.total, self.count = 0.0, 0

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step % self.every_steps == 0:
            gradients = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
            self.total += float(torch.nn.utils.get_total_norm(gradients))
            self.count += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.count:
            pl_module.log("train/gradient_norm", self.total / self.count)
        self.total, self.count = 0.0, 0

    # A run that is resumed within an epoch needs these.

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total, self.count = state_dict["total"], state_dict["count"]
