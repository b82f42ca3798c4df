"""logger=wandb: the curves in Weights & Biases."""

import secrets
import sys
from pathlib import Path

import numpy as np
import wandb
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from imgrec.errors import ConfigError, first_line
from imgrec.files import atomic_write

X_AXIS = "trainer/global_step"  # Lightning's name of it


class ResumableWandbLogger(WandbLogger):
    """Lightning's WandbLogger for the one W&B run of a run directory: SAVE_DIR/wandb/run_id names it.

    After a stop or an exception W&B has each point once. After a kill it may lack those of the last seconds, which its own process
    had not yet written, and has those after the last checkpoint twice, with the same step. Raises ConfigError where W&B cannot start.
    """

    def __init__(
        self,
        *,
        save_dir: str,
        project: str,
        entity: str | None,
        name: str | None,
        group: str | None,
        tags: list[str],
        offline: bool,
    ) -> None:
        folder = Path(save_dir).absolute()
        stored = folder / "wandb/run_id"
        if not stored.exists():
            stored.parent.mkdir(exist_ok=True)
            atomic_write(stored, secrets.token_hex(4))
        try:
            run = wandb.init(
                project=project,
                entity=entity,
                name=name or "/".join(folder.parts[-2:]),
                group=group,
                tags=tags,
                dir=save_dir,
                id=stored.read_text(),
                resume="allow",
                mode="offline" if offline else "online",
                settings=wandb.Settings(console="off", silent=offline),  # the console shows imgrec's own lines
            )
        except wandb.Error as error:
            raise ConfigError(f"logger=wandb: {first_line(error)}. Type wandb login, or set logger.offline=true.") from error
        run.define_metric(X_AXIS)
        run.define_metric("*", step_metric=X_AXIS, step_sync=True)
        super().__init__(experiment=run, offline=offline, save_dir=save_dir, project=project)

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """A picture under `name` at a step."""
        self.log_image(name, [picture], step)

    def log_histogram(self, name: str, values: Tensor, step: int) -> None:
        """A histogram of all the values under `name` at a step."""
        histogram = wandb.Histogram(np_histogram=np.histogram(values.float().cpu().numpy(), bins=64))
        self.experiment.log({name: histogram, X_AXIS: step})

    def close(self) -> None:
        """End the run in W&B, until it is resumed."""
        self.experiment.finish(exit_code=int(sys.exception() is not None))
