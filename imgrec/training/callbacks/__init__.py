"""Observers of a training: each watches and reports, none changes the run."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning.callbacks import Callback

    from imgrec.config.schema import RunConfig
    from imgrec.terminal import Terminal
    from imgrec.training.callbacks.history import History
    from imgrec.training.run_dir import RunDir


def observers(run: "RunConfig", folder: "RunDir", screen: "Terminal") -> "tuple[list[Callback], History]":
    """The observers of a run in the order they need: who measures, who collects, who shows."""
    from imgrec.training.callbacks.console import EpochLines
    from imgrec.training.callbacks.finite import FiniteLoss
    from imgrec.training.callbacks.history import History
    from imgrec.training.callbacks.tensorboard import TensorBoardExtras
    from imgrec.training.callbacks.throughput import Throughput

    history = History(folder.path / "metrics.csv", run.monitor)
    return [
        FiniteLoss(str(folder.checkpoints)),
        Throughput(),
        history,
        EpochLines(screen, history),
        TensorBoardExtras(run, history),
    ], history
