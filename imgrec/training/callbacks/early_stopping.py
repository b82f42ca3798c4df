"""The early end of a training that becomes no better, or is worse than the others of its search."""

from collections.abc import Callable, Sequence

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from imgrec.config.schema import Monitor, monitor_mode
from imgrec.training.callbacks.history import History


def build_early_stopping(*, patience: int, min_delta: float, monitor: Monitor) -> EarlyStopping | None:
    """Lightning's EarlyStopping, after each epoch; None for patience 0."""
    if patience == 0:
        return None
    return EarlyStopping(
        monitor, min_delta=min_delta, patience=patience, mode=monitor_mode(monitor), check_on_train_epoch_end=True
    )


class Pruning(pl.Callback):
    """Ends the training after epoch i if the best value of `monitor` so far is worse than thresholds[i - 1].

    It reads what `history` collected, so it comes after it in the list of callbacks. Those figures are of all ranks, so
    they decide alike; they are in the checkpoint, so a resumed run ends at the same epoch.
    """

    def __init__(self, history: History, thresholds: Sequence[float], say: Callable[[str], None]) -> None:
        self.history, self.thresholds, self.say = history, thresholds, say

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        best, epoch, monitor = self.history.best(), trainer.current_epoch, self.history.monitor
        if best is None or epoch >= len(self.thresholds):
            return
        if not self.history.is_as_good(best[monitor], self.thresholds[epoch]):
            trainer.should_stop = True
            self.say(f"pruned after epoch {epoch + 1}: the best {monitor} is worse than {self.thresholds[epoch]:.4f}.")
