"""logger=csv: every point of the curves in a file."""

from functools import cached_property
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from imgrec.errors import ConfigError
from imgrec.files import is_directory_name
from imgrec.training.loggers import Points, new_points
from imgrec.training.stored_run import read_rows


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSVLogger, which deletes the file of an interrupted run, here keeps its rows: SAVE_DIR/NAME/metrics.csv."""

    def __init__(self, *, save_dir: str, name: str) -> None:
        if not is_directory_name(name):
            raise ConfigError(f"logger.name={name}: expected a name for a directory, without a slash. Set logger.name=csv.")
        # A row is on the disk before a checkpoint that comes after it.
        super().__init__(save_dir, name, version="", flush_logs_every_n_steps=1)
        self._file = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        self._rows = read_rows(self._file)
        self._last_steps = {name: int(row["step"]) for row in self._rows for name in row}

    @cached_property
    def experiment(self) -> ExperimentWriter:  # made at the first point: a run that is refused leaves no directory
        self._file.unlink(missing_ok=True)
        writer = ExperimentWriter(self.log_dir)
        for row in self._rows:
            writer.log_metrics(row, int(row["step"]))
        writer.save()
        return writer

    def log_metrics(self, metrics: Points, step: int | None = None) -> None:  # type: ignore[override]
        if new := new_points(metrics, step, self._last_steps):
            super().log_metrics(dict(new), step)

    def log_hyperparams(self, params: object = None) -> None:
        """Nothing: config.yaml in the run directory has them."""
