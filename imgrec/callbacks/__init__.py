"""Observers of a training: each watches and reports, none changes the run."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning.callbacks import Callback

    from imgrec.callbacks.history import History
    from imgrec.config import RunConfig
    from imgrec.rundir import RunDir
    from imgrec.screen import Screen


def observers(run: "RunConfig", folder: "RunDir", screen: "Screen") -> "tuple[list[Callback], History]":
    """The observers of a run in the order they need: who measures, who collects, who shows."""
    from imgrec.callbacks.board import Board
    from imgrec.callbacks.console import EpochLines
    from imgrec.callbacks.finite import Finite
    from imgrec.callbacks.history import History
    from imgrec.callbacks.throughput import Throughput

    history = History(folder.path / "metrics.csv", run.monitor)
    return [Finite(str(folder.checkpoints)), Throughput(), history, EpochLines(screen, history), Board(run, history)], history
