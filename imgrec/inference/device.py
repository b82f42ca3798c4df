"""The device of a prediction: which there are, its precision and its memory."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from imgrec.config.schema import Precision
from imgrec.data.decode import Preprocessing
from imgrec.errors import ConfigError, lacks_memory


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
def inference(device: torch.device, precision: Precision) -> Iterator[None]:
    """No gradients, and the chosen precision; ConfigError where the device's memory does not hold what is computed."""
    half = torch.float16 if precision == "16-mixed" else torch.bfloat16
    with memory_checked(device), torch.inference_mode(), torch.autocast(device.type, half, enabled=precision != "32"):
        yield


@contextmanager
def memory_checked(device: torch.device) -> Iterator[None]:
    """ConfigError where the device's memory does not hold what is computed."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        other = "" if device.type == "cpu" else ", or set device=cpu"
        raise ConfigError(
            f"device={device.type}: its memory does not hold a single image in this network. End what else uses it{other}."
        ) from error


class Halving:
    """Calls a function of images in parts, each half as large from the time on that the memory did not hold one.

    For networks that are not trained, whose answers do not depend on the other images of a batch.
    """

    most: int | None = None  # images at once; None: as many as there are

    def __call__(self, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """`compute` of [B, ...] -> [B, ...]; raises what it raises of a single image."""
        while True:
            size = min(len(images), self.most or len(images))
            try:
                parts = [compute(images[first : first + size]) for first in range(0, len(images) or 1, size or 1)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except (RuntimeError, MemoryError) as error:
                if size <= 1 or not is_out_of_memory(error):
                    raise
            # Here the traceback, which holds the tensors of the part, is gone.
            self.most = size // 2


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
    """Of a GPU, or as of `lacks_memory`."""
    return isinstance(error, torch.OutOfMemoryError) or lacks_memory(error)
