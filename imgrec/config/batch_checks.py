"""Checks of batch_size that take more than the config."""

from collections.abc import Iterable

from imgrec.errors import ConfigError


def check_batch_divides(batch_size: int | str, devices: int) -> None:
    """ConfigError where the number of devices does not divide the global batch; "full" is split evenly."""
    if isinstance(batch_size, int) and batch_size % devices:
        lower, upper = batch_size // devices * devices, -(-batch_size // devices) * devices
        fits = [n for n in range(1, devices + 1) if batch_size % n == 0]
        near = f"batch_size={lower} or batch_size={upper}" if lower else f"batch_size={upper}"
        raise ConfigError(
            f"batch_size={batch_size} is the global batch, and {devices} devices do not divide it. "
            f"Set {near}, or use {' or '.join(map(str, fits[-2:]))} device{'' if fits[-2:] == [1] else 's'}."
        )


def check_same_batch(batch_sizes: Iterable[object], several: str) -> None:
    """ConfigError for batch_size=auto of runs that are compared."""
    if "auto" in batch_sizes:
        raise ConfigError(
            f"batch_size=auto: each of {several} would choose its own, and their results differ by that too. "
            "Set batch_size=64, or what imgrec benchmark recommends; max_device_batch=auto is possible."
        )
