"""logger=mlflow: the curves on an MLflow server, or in a file."""

import logging
import os
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger

from imgrec.errors import ConfigError, first_line
from imgrec.files import atomic_write
from imgrec.training.loggers import Points, new_points


class ResumableMLFlowLogger(MLFlowLogger):
    """Lightning's MLFlowLogger for the one MLflow run of a run directory: SAVE_DIR/mlflow holds its id.

    tracking_uri None: MLFLOW_TRACKING_URI of the environment, else SAVE_DIR/mlflow/mlflow.db. ConfigError if it refuses.
    """

    def __init__(
        self, *, save_dir: str, experiment_name: str, run_name: str | None, tracking_uri: str | None, tags: dict[str, str]
    ) -> None:
        folder = Path(save_dir).absolute() / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
        stored = folder / "run_id"
        try:
            client = MlflowClient(uri)
            if stored.exists():
                run_id = stored.read_text()
                client.update_run(run_id, status="RUNNING")
            else:
                experiment = client.get_experiment_by_name(experiment_name)
                if experiment is None:  # of a file of ours: MLflow would put pictures into mlruns where the command was typed
                    place = (folder / "artifacts").as_uri() if uri.startswith("sqlite:") else None
                    experiment_id = client.create_experiment(experiment_name, artifact_location=place)
                else:
                    experiment_id = experiment.experiment_id
                name = run_name or "/".join(folder.parts[-3:-1])
                run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
                atomic_write(stored, run_id)
            known = client.get_run(run_id).data
            self._last_steps = {key: max(p.step for p in client.get_metric_history(run_id, key)) for key in known.metrics}
        except MlflowException as error:
            raise ConfigError(f"logger=mlflow: {uri}: {first_line(error)}. Set logger.tracking_uri, or logger=none.") from error
        self._params = known.params
        super().__init__(tracking_uri=uri, run_id=run_id)

    def log_hyperparams(self, params: dict[str, Any]) -> None:  # type: ignore[override]
        """Those that are not stored yet: MLflow refuses another value, such as the num_workers of a resumed run."""
        super().log_hyperparams({name: value for name, value in params.items() if name not in self._params})

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """An artifact `name`/STEP.png: a resumed run replaces it."""
        self.experiment.log_image(self.run_id, picture, artifact_file=f"{name}/{step:08}.png")

    def log_metrics(self, metrics: Points, step: int | None = None) -> None:
        if metrics := new_points(metrics, step, self._last_steps):
            super().log_metrics(metrics, step)
