"""The device of a prediction: which there are, its precision and its memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from imgrec.config.schema import Precision
from imgrec.data.decode import Preprocessing
from imgrec.errors import ConfigError


def choose_device(device: str) -> torch.device:
    """The device of this name, or for auto the first that there is; ConfigError for one that is not available."""
    devices = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [name for name, is_there in devices.items() if is_there]
    if device == "auto":
        return torch.device(available[0])
    if device not in available:
        raise ConfigError(f"device={device} is not available; torch finds {' and '.join(available)} here. Set device=auto.")
    return torch.device(device)


@contextmanager
def inference(device: torch.device, precision: Precision, batch_size: int) -> Iterator[None]:
    """No gradients, and the chosen precision; ConfigError where the device's memory does not hold `batch_size` images."""
    try:
        half = torch.float16 if precision == "16-mixed" else torch.bfloat16
        with torch.inference_mode(), torch.autocast(device.type, half, enabled=precision != "32"):
            yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        hint = f"Set batch_size={batch_size // 2}." if batch_size > 1 else "Set device=cpu."
        raise ConfigError(f"batch_size={batch_size}: so many images do not fit in the memory of {device}. {hint}") from error


def check_memory(batch_size: int, preprocessing: Preprocessing) -> None:
    """ConfigError for a batch that would take more than half of the machine's memory: the system may end other processes first."""
    image = 4 * preprocessing["channels"] * preprocessing["image_size"] ** 2
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if batch_size * image > most:
        raise ConfigError(
            f"batch_size={batch_size}: so many images do not fit in the memory of this machine. "
            f"Set batch_size={max(1, most // image // 4)}."
        )


def is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, or of the CPU, for which torch has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
