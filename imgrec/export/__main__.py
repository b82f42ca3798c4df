"""A trained network as a file for other programs: python -m imgrec.export ckpt=runs/NAME/ID format=onnx out=model.onnx"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from imgrec.config.answers import check_answers
from imgrec.config.compose import compose_config
from imgrec.config.schema import MovedData, dotted_types, parse_settings
from imgrec.config.start_checks import check_moved, check_no_changes, check_packages
from imgrec.distributed.command import run_command
from imgrec.errors import CheckpointError, ConfigError, ExitCode
from imgrec.export.plain_files import (
    PROGRAM_PACKAGES,
    WEIGHTS_PACKAGES,
    check_program_output,
    check_weights_output,
    json_beside,
)
from imgrec.export.sealed_file import PACKAGES, check_onnx_output, script_beside
from imgrec.files import on_progress
from imgrec.paths import EXPORTED, find_checkpoint
from imgrec.terminal import Terminal

ExportFormat = Literal["onnx", "torch_export", "safetensors"]


class _FileKind(NamedTuple):
    """A format.

    packages: that write and read it, beside torch; check: that it can be written; beside: what comes with it; reader: the
    words of a shell, before the file's name, that read it.
    """

    packages: tuple[str, ...]
    check: Callable[[Path, bool], None]
    beside: Callable[[Path], Path] | None
    reader: tuple[str, ...]


_READ_PROGRAM = (
    'import json, sys, torch; facts = {"facts.json": ""}; torch.export.load(sys.argv[1], extra_files=facts); '
    'print(*json.loads(facts["facts.json"]))'
)
_READ_WEIGHTS = 'import sys; from safetensors.torch import load_file; print(f"{len(load_file(sys.argv[1]))} tensors")'
FILE_KINDS: dict[ExportFormat, _FileKind] = {
    "onnx": _FileKind(PACKAGES, check_onnx_output, script_beside, ("imgrec", "verify")),
    "torch_export": _FileKind(PROGRAM_PACKAGES, check_program_output, None, ("python", "-c", _READ_PROGRAM)),
    "safetensors": _FileKind(WEIGHTS_PACKAGES, check_weights_output, json_beside, ("python", "-c", _READ_WEIGHTS)),
}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The keys of conf/export.yaml."""

    ckpt: str | None
    format: ExportFormat
    out: str | None
    coverage: float | None
    sets_by_class: bool
    risk: float | None
    int8: bool
    calibrated: bool
    check: bool
    data: MovedData
    overwrite: bool


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Build the file, compare it with PyTorch on the validation images, write it, and say what was compared."""
    config = parse_settings(ExportConfig, compose_config("export", argv, config_dir, types=dotted_types(ExportConfig)))
    check_answers(coverage=config.coverage, risk=config.risk, calibrated=config.calibrated, tta=None)
    if config.ckpt is None:
        raise ConfigError("ckpt=null: export needs a checkpoint. Set ckpt=runs/NAME/ID, or a .ckpt file.")
    _check_together(config)
    kind, ending = FILE_KINDS[config.format], EXPORTED[config.format]
    out = Path(config.out or f"model{ending}")
    if other := [form for form in EXPORTED if EXPORTED[form] == out.suffix != ending]:
        raise ConfigError(
            f"out={out}: format={config.format} writes {ending} files. Set format={other[0]}, or out={out.with_suffix(ending)}."
        )
    ckpt = find_checkpoint(config.ckpt)
    kind.check(out, config.overwrite)
    check_packages(f"format={config.format}", "export", *kind.packages)
    terminal = Terminal()
    with terminal.progress_shown():
        on_progress.get()("reading the network", 0, None)
        _export(config, ckpt, out, terminal)
    return ExitCode.OK


def _check_together(config: ExportConfig) -> None:
    promise = next((f"{key}={value}" for key in ("coverage", "risk") if (value := getattr(config, key)) is not None), None)
    if config.int8 and config.format != "onnx":
        raise ConfigError(f"int8=true: there is no such file of format={config.format}. Set format=onnx.")
    if not (config.check or config.int8):
        check_no_changes(asdict(config.data), "check=false, which reads no images")
    check_moved(config.data)
    if promise and config.int8:
        raise ConfigError(f"{promise}: its limits were fitted to the network in 32 bits. Leave it out, or int8=true.")
    if promise and config.format == "safetensors":
        raise ConfigError(
            f"{promise}: a file of weights computes nothing. Leave it out, or set format=onnx or format=torch_export."
        )


def _export(config: ExportConfig, ckpt: Path, out: Path, terminal: Terminal) -> None:
    from imgrec.export.agreement import check_agreement, compare_answers, measure_agreement, run_images
    from imgrec.export.classifier import PROBABILITIES, WholeClassifier
    from imgrec.export.formats import BUILDERS, Plan, build_int8
    from imgrec.export.int8 import measure_cost
    from imgrec.export.picture import choose_picture
    from imgrec.inference.checkpoint import load_checkpoint
    from imgrec.inference.guarantee import find_guarantee
    from imgrec.inference.predictor import Predictor

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
    changes = asdict(config.data)
    images = run_images(checkpoint, "val", changes) if config.check else None
    training = run_images(checkpoint, "train", changes) if config.int8 else None
    classifier = WholeClassifier(predictor, guarantee)
    promised = {name: value for name in ("coverage", "sets_by_class", "risk") if (value := getattr(config, name))}
    plan = Plan(checkpoint, classifier, choose_picture(classifier), promised or None)
    if not plan.probe.outputs[PROBABILITIES].isfinite().all():
        raise CheckpointError(f"{checkpoint.file}: the network's answer is not a number. Train again with a lower optim.lr.")
    agreement = cost = None
    on_progress.get()("writing the network", 0, None)
    built = BUILDERS[config.format](plan)
    expected = plan.probe.outputs[PROBABILITIES].numpy()
    check_agreement(compare_answers(built.answer(plan.probe.image), expected, guarantee), out)
    if images is not None:
        agreement = measure_agreement(predictor, images, built.answer, guarantee)
        check_agreement(agreement, out)
    if training is not None:
        float32, built = built, build_int8(plan, built.graph, training)
        cost = None if images is None else measure_cost(images, len(checkpoint.classes), float32.answer, built.answer)
    figures = {"agreement": agreement} | ({"int8": cost} if config.int8 else {})
    built.write(out, {name: None if value is None else asdict(value) for name, value in figures.items()})
    _say_export(terminal, config, out, agreement, cost)


def _say_export(terminal: Terminal, config: ExportConfig, out: Path, agreement: object, cost: object) -> None:
    kind = FILE_KINDS[config.format]
    if agreement is None:
        terminal.say("check=false: the file was not compared with PyTorch on the validation images", style="yellow")
    else:
        terminal.say(f"on the validation images: {agreement}")
    if cost is not None:
        terminal.say(f"with int8: {cost}")
    terminal.say(f"{out} ({out.stat().st_size / 1e6:.1f} MB){'' if kind.beside is None else f' and {kind.beside(out).name}'}")
    terminal.say(f"next:\n  {shlex.join([*kind.reader, str(out)])}")


if __name__ == "__main__":
    sys.exit(run_command("export", main, sys.argv[1:]))
