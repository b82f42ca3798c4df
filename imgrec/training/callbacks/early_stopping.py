"""Stopping a training that becomes no better."""

from pytorch_lightning.callbacks import EarlyStopping

from imgrec.config.schema import Monitor, monitor_mode


def build_early_stopping(*, patience: int, min_delta: float, monitor: Monitor) -> EarlyStopping | None:
    """Lightning's EarlyStopping, after each epoch; None for patience 0."""
    if patience == 0:
        return None
    return EarlyStopping(
        monitor, min_delta=min_delta, patience=patience, mode=monitor_mode(monitor), check_on_train_epoch_end=True
    )
