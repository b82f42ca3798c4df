"""A trained network as a file for other programs: python -m imgrec.export ckpt=runs/NAME/ID format=onnx out=model.onnx"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from imgrec.config.answers import check_answers
from imgrec.config.compose import compose_config
from imgrec.config.schema import dotted_types, parse_settings
from imgrec.distributed.command import run_command
from imgrec.errors import ConfigError, ExitCode
from imgrec.export.sealed_file import PACKAGES, check_onnx_output, check_packages, script_beside, write_sealed
from imgrec.files import on_progress
from imgrec.inference.paths import find_checkpoint
from imgrec.terminal import Terminal

ExportFormat = Literal["onnx"]
FORMAT_SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx"}


@dataclass(frozen=True)
class DataPlace:
    """Where the run's data set is now; None: as in the run."""

    root: str | None
    file: str | None


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The keys of conf/export.yaml."""

    ckpt: str | None
    format: ExportFormat
    out: str | None
    coverage: float | None
    sets_by_class: bool
    risk: float | None
    calibrated: bool
    check: bool
    data: DataPlace
    overwrite: bool


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Build the file, compare it with PyTorch on the validation images, write it, and say what was compared."""
    config = parse_settings(ExportConfig, compose_config("export", argv, config_dir, types=dotted_types(ExportConfig)))
    check_answers(coverage=config.coverage, risk=config.risk, calibrated=config.calibrated, tta=None)
    if config.ckpt is None:
        raise ConfigError("ckpt=null: export needs a checkpoint. Set ckpt=runs/NAME/ID, or a .ckpt file.")
    out = Path(config.out or f"model{FORMAT_SUFFIXES[config.format]}")
    ckpt = find_checkpoint(config.ckpt)
    check_onnx_output(out, overwrite=config.overwrite)
    check_packages(*PACKAGES)
    _export(config, ckpt, out)
    return ExitCode.OK


def _export(config: ExportConfig, ckpt: Path, out: Path) -> None:
    from imgrec.export.agreement import check_agreement, compare_answers, measure_agreement, validation_images
    from imgrec.export.classifier import PROBABILITIES, WholeClassifier
    from imgrec.export.onnx_file import model_facts, onnx_answer, onnx_graph, test_entry
    from imgrec.export.picture import choose_picture
    from imgrec.inference.checkpoint import load_checkpoint
    from imgrec.inference.guarantee import find_guarantee
    from imgrec.inference.predictor import Predictor

    terminal = Terminal()
    checkpoint = load_checkpoint(ckpt)
    guarantee = find_guarantee(
        checkpoint,
        coverage=config.coverage,
        risk=config.risk,
        sets="lac",
        sets_by_class=config.sets_by_class,
        calibrated=config.calibrated,
        tta=None,
    )
    # PyTorch has to say the same as the file, which computes in float32 anywhere.
    predictor = Predictor(checkpoint, device="cpu", precision="32", calibrated=config.calibrated)
    images = validation_images(checkpoint, asdict(config.data)) if config.check else None
    classifier = WholeClassifier(predictor, guarantee)
    promised = {name: value for name in ("coverage", "sets_by_class", "risk") if (value := getattr(config, name))}
    facts = model_facts(classifier, checkpoint, promised or None)
    probe = choose_picture(classifier)
    agreement = None
    with terminal.progress_shown():
        on_progress.get()("writing the network as ONNX", 0, None)
        graph = onnx_graph(classifier, checkpoint)
        answer = onnx_answer(graph)
        check_agreement(compare_answers(answer(probe.image), probe.outputs[PROBABILITIES].numpy()), out)
        if images is not None:
            agreement = measure_agreement(predictor, images, answer)
            check_agreement(agreement, out)
    facts |= {"agreement": None if agreement is None else asdict(agreement), "test": test_entry(probe)}
    write_sealed(out, graph, facts)
    if agreement is None:
        terminal.say("check=false: the file was not compared with PyTorch on the validation images", style="yellow")
    else:
        terminal.say(f"on the validation images: {agreement}")
    terminal.say(f"{out} ({out.stat().st_size / 1e6:.1f} MB) and {script_beside(out).name}")
    terminal.say(f"next:\n  imgrec verify {shlex.quote(str(out))}")


if __name__ == "__main__":
    sys.exit(run_command("export", main, sys.argv[1:]))
