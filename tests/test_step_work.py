"""What a step does besides its network: no operation, and no question of Lightning's, that each step could do without."""

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors import data_connector
from torch.utils._python_dispatch import TorchDispatchMode

from imgrec.config.schema import RunConfig
from imgrec.train import fit
from imgrec.training.module import EpochSums

FREE = ("_record_function_enter_new", "_record_function_exit", "detach", "slice", "unsqueeze")  # views, and a profiler's marks
WORDS = (
    "augment=none",
    "batch_size=8",
    "trainer.limit_val_batches=1",
    "epochs=1",
    "trainer.accelerator=cpu",
    "trainer.precision=32",
)


class Operations(TorchDispatchMode):
    """Names torch's operations of the training steps from the batch to the loss, without those of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.noting = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.noting:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Noting(pl.Callback):
    def __init__(self) -> None:
        self.operations = Operations()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.net.register_forward_pre_hook(lambda *_: setattr(self.operations, "noting", False))
        pl_module.net.register_forward_hook(lambda *_: setattr(self.operations, "noting", True))

    def on_train_batch_start(self, *_: Any) -> None:
        self.operations.names.clear()
        self.operations.__enter__()

    def on_before_backward(self, *_: Any) -> None:
        self.operations.__exit__(None, None, None)


def test_a_step_does_what_it_needs(small: Callable[..., RunConfig]) -> None:
    noting = Noting()
    fit(small(*WORDS), quiet=True, callbacks=noting)
    found = [name for name in noting.operations.names if name not in FREE]
    targets, pixels = ["zeros", "scatter_"], ["empty_like", "copy_", "mul_", "add_", "clone"]  # clone: channels last
    losses, objective = ["_log_softmax", "mul", "sum", "neg"], ["sum", "mul"]
    accuracy, by_lightning = ["argmax", "gather", "sum", "add", "add"], ["div", "clone"]
    assert found == [*targets, *pixels, *losses, *objective, *accuracy, *by_lightning, "_local_scalar_dense"]


def test_sums_stay_those_of_the_step_where_they_were_taken() -> None:
    sums = EpochSums(torch.device("cpu"))
    sums.add(torch.tensor(1.5), torch.tensor(2.0), 3)
    taken = sums.loss, sums.correct
    sums.add(torch.tensor(1.0), torch.tensor(1.0), 3)
    assert [value.item() for value in taken] == [1.5, 2.0]
    assert (sums.loss.item(), sums.correct.item(), sums.samples) == (2.5, 3.0, 6)


def test_lightning_asks_for_overridden_hooks_once_a_fit(small: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    is_overridden = data_connector.is_overridden

    def counted(*args: Any) -> bool:
        nonlocal asked
        asked += 1
        return is_overridden(*args)

    monkeypatch.setattr(data_connector, "is_overridden", counted)
    counts = []
    for steps in (2, 5):
        asked = 0
        fit(small(*WORDS, f"trainer.limit_train_batches={steps}", f"id={steps}"), quiet=True)
        counts.append(asked)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("clip", [0.0, 0.001])
def test_a_step_begins_without_gradients_and_they_are_clipped(small: Callable[..., RunConfig], clip: float) -> None:
    norms, left = [], []

    class Gradients(pl.Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            norms.extend(parameter.grad.norm() for parameter in pl_module.parameters() if parameter.grad is not None)

        def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Any) -> None:
            left.extend(parameter.grad for parameter in pl_module.parameters())

    fit(small(*WORDS, f"trainer.gradient_clip={clip}"), quiet=True, callbacks=Gradients())  # of two steps
    assert left
    assert left == [None] * len(left)
    norm = torch.stack(norms).norm().item()
    assert norm == pytest.approx(clip, rel=1e-4) if clip else norm > 0.01
