"""What `imgrec.fit` returns."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgrec.config.annotations import is_number
from imgrec.config.schema import Device

if TYPE_CHECKING:
    from imgrec.inference.predictor import Predictor


class Result(dict[str, Any]):
    """The content of a run's result.json, as a dictionary; `folder` is the run directory."""

    def __init__(self, content: dict[str, Any], folder: Path) -> None:
        super().__init__(content)
        self.folder = folder

    @property
    def metrics(self) -> dict[str, float]:
        """The figures of the weights that were tested: "train/loss", "val/accuracy", ... of their epoch, and "test/accuracy", ..."""
        figures = dict(self["best"] or self["last"])
        figures |= {f"test/{name}": value for name, value in (self["test"] or {}).items()}
        return {name: value for name, value in figures.items() if "/" in name and is_number(value)}

    def load(self, *, device: Device = "auto") -> "Predictor":
        """The predictor of the run's best checkpoint, as `imgrec.load(result.folder)` gives it."""
        from imgrec.inference.predictor import load

        return load(self.folder, device=device)

    def __repr__(self) -> str:
        return f"<imgrec.Result of {os.fspath(self.folder)}: {self['summary']}>"
