"""The event files of TensorBoard: one error where they cannot be written, and the cut back to a checkpoint."""

import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

EVENTS = "events.out.tfevents.*"
LOGGERS = (
    "pytorch_lightning.loggers.",
    "lightning_fabric.loggers.",
    "imgrec.training.loggers.",
    "tensorboard.",
    "torch.utils.tensorboard.",
)


@contextmanager
def event_errors(folder: Path) -> Iterator[None]:
    """A failed write of a logger is one OSError in the block, where the next event is written, with its folder where it names no file.

    The thread that meets it would print its traceback besides, and Lightning turns it into a ValueError about the point.
    """
    report = threading.excepthook
    threading.excepthook = lambda failed: None if type(failed.thread).__module__.startswith("tensorboard.") else report(failed)
    try:
        yield
    except (OSError, ValueError) as error:
        failed = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(failed, OSError) or not _is_of_logger(error):
            raise
        failed.filename = failed.filename or str(folder)
        raise failed from None
    finally:
        threading.excepthook = report


def _is_of_logger(error: Exception) -> bool:
    """Whether a module of a logger raised it, or called what did."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(module.startswith(LOGGERS) for module in modules)


def event_file_sizes(trainer: pl.Trainer) -> dict[str, int]:
    """Bytes of each event file so far, by its name: a resumed run truncates them, so that no step is logged twice."""
    logger = trainer.logger
    if not isinstance(logger, TensorBoardLogger) or not trainer.is_global_zero:
        return {}
    logger.experiment.flush()
    return {file.name: file.stat().st_size for file in sorted(Path(logger.log_dir).glob(EVENTS))}


def truncate_event_files(folder: Path, sizes: dict[str, int]) -> None:
    """Cut the event files in a folder back to these sizes, and remove those that came later."""
    for file in folder.glob(EVENTS):
        if file.name not in sizes:
            file.unlink()
        elif file.stat().st_size > sizes[file.name]:
            os.truncate(file, sizes[file.name])
