"""A network that sleeps: code of one's own, as IMGREC_ALLOW=slow lets it be called."""

import time
from typing import Any

from torch import Tensor

from imgrec.models.simple_cnn import SimpleCNN


class SlowCNN(SimpleCNN):
    """SimpleCNN that sleeps `seconds` in each training forward; its numbers are those of SimpleCNN."""

    def __init__(self, *, seconds: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            time.sleep(self.seconds)
        return super().forward(x)
