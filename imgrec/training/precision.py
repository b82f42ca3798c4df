"""The precision of trainer.precision=auto: the one with which the shipped networks were measured to train faster."""

from pathlib import Path

from imgrec.config.schema import Precision, RunConfig, TrainerConfig
from imgrec.distributed.device_checks import trains_on_cuda
from imgrec.distributed.process_group import on_first_rank


def chosen_precision(run: RunConfig, saved: Precision | None = None) -> RunConfig:
    """The run with the precision that "auto" stands for, the same on all ranks. saved: that of the run that is resumed, which it keeps."""
    if run.trainer.precision != "auto":
        return run
    return run.with_precision(on_first_rank(lambda: faster_precision(run.trainer)) if saved is None else saved)


def faster_precision(config: TrainerConfig) -> Precision:
    """bf16-mixed on a GPU or CPU that computes in bf16, else 32: where it is emulated, it is slower."""
    import torch

    if trains_on_cuda(config):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    on_mps = config.accelerator != "cpu" and torch.backends.mps.is_available()
    return "bf16-mixed" if not on_mps and "avx512_bf16" in cpu_flags() else "32"


def cpu_flags(file: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The instruction sets of the CPU, as Linux names them; none elsewhere."""
    if not file.exists():
        return set()
    return {flag for line in file.read_text().splitlines() if line.startswith("flags") for flag in line.partition(":")[2].split()}
