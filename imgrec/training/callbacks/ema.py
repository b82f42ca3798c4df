"""An average of the weights."""

from pytorch_lightning.callbacks import EMAWeightAveraging


def build_ema(*, decay: float, every_steps: int) -> EMAWeightAveraging | None:
    """Lightning's EMAWeightAveraging; None for decay 0."""
    return EMAWeightAveraging(decay=decay, update_every_n_steps=every_steps) if decay else None
