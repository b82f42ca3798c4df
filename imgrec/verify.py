"""Whether an exported file gives here what it gave when it was written: python -m imgrec.verify model.onnx"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imgrec.config.compose import compose_config
from imgrec.config.schema import dotted_types, parse_settings
from imgrec.config.start_checks import check_packages
from imgrec.distributed.command import run_command
from imgrec.errors import ConfigError, DataError, ExitCode, did_you_mean, first_line, lacks_memory
from imgrec.export.sealed_file import is_sealed
from imgrec.files import did_you_mean_path
from imgrec.paths import file_kind
from imgrec.terminal import Terminal


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """The keys of conf/verify.yaml."""

    file: str | None
    provider: str | None


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Run the file on the test image that it carries; DataError where it gives something else than PyTorch gave."""
    config = parse_settings(VerifyConfig, compose_config("verify", argv, config_dir, types=dotted_types(VerifyConfig)))
    if config.file is None:
        raise ConfigError("file=null: there is no file to verify. Type imgrec verify model.onnx.")
    file = Path(config.file)
    if not file.is_file():
        found = "it is no regular file." if file.exists() else f"there is no such file.{did_you_mean_path(file)}"
        raise DataError(f"{file}: {found} Name a file that imgrec export wrote.")
    if file.suffix != ".onnx" and not is_sealed(file):
        raise DataError(
            f"{file} is {file_kind(file)}, and verify runs an .onnx file that imgrec export wrote. Type imgrec verify model.onnx"
        )
    check_packages("verify", "export", "onnxruntime")
    import onnxruntime

    from imgrec.export.verify_model import read_file, verify

    onnxruntime.set_default_logger_severity(4)  # its errors are raised too
    known = onnxruntime.get_available_providers()
    if config.provider is not None and config.provider not in known:
        raise ConfigError(
            f"provider={config.provider} is not available; ONNX Runtime {onnxruntime.__version__} has {', '.join(known)} here."
            f"{did_you_mean(config.provider, known)} Leave provider out for all of them."
        )
    try:
        difference, tolerance, used = verify(read_file(str(file)), [config.provider] if config.provider else None)
    except Exception as error:  # a file may hold anything; ONNX Runtime has a dozen kinds for what it cannot read or run
        if lacks_memory(error):
            raise DataError(f"{file} cannot be used: the memory does not hold it. End what else uses it.") from error
        raise DataError(f"{file} cannot be used: {first_line(error)}. Export it again, or name another.") from error
    where = f"ONNX Runtime {onnxruntime.__version__} with {', '.join(used)}"
    if not difference <= tolerance:
        raise DataError(
            f"{file} gives something else here: an output differs by {difference:.2g} from what PyTorch gave for its test image, and "
            f"{tolerance:g} is allowed. {where} resizes or computes otherwise: use another."
        )
    Terminal().say(f"{file}: as when it was exported, by {where}; largest difference {difference:.2g}, allowed {tolerance:g}")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command("verify", main, sys.argv[1:]))
