"""A network as a file of each format: what the file answers, and how it is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from imgrec.data.image_set import ImageSet
from imgrec.export.agreement import MOST_APART, FileAnswer
from imgrec.export.classifier import PROBABILITIES, WholeClassifier
from imgrec.export.int8 import INT8_APART, quantize
from imgrec.export.onnx_file import model_facts, onnx_answer, onnx_graph, test_entry
from imgrec.export.picture import Probe
from imgrec.export.plain_files import PROGRAM_PACKAGES, WEIGHTS_PACKAGES, json_beside
from imgrec.export.sealed_file import PACKAGES, write_sealed
from imgrec.export.torch_program import program_answer, program_bytes, torch_program
from imgrec.export.weights import network_facts, weights_answer, weights_bytes
from imgrec.files import utf8_json, write_together
from imgrec.inference.checkpoint import Checkpoint

FileFacts = dict[str, Any]


class Plan(NamedTuple):
    """What is exported: the classifier of a checkpoint, its test picture, and what its second output promises."""

    checkpoint: Checkpoint
    classifier: WholeClassifier
    probe: Probe
    promised: FileFacts | None

    def facts(self, packages: tuple[str, ...]) -> dict[str, Any]:
        return model_facts(self.classifier, self.checkpoint, self.promised, packages)


class Built(NamedTuple):
    """answer: the outputs of the file as it will be; write: the file, and those beside it, with further facts; graph: of ONNX."""

    answer: FileAnswer
    write: Callable[[Path, FileFacts], None]
    graph: bytes = b""


def build_onnx(plan: Plan) -> Built:
    """One ONNX file, and the script that verifies it."""
    return _onnx_built(plan, onnx_graph(plan.classifier, plan.checkpoint), MOST_APART)


def build_int8(plan: Plan, graph: bytes, training: ImageSet) -> Built:
    """The same, of a graph that computes with 8 bits; what the test picture gets from it is what others have to get."""
    quantized = quantize(graph, training)
    answer = torch.from_numpy(onnx_answer(quantized)(plan.probe.image)[0])
    own = plan._replace(probe=plan.probe._replace(outputs={PROBABILITIES: answer}))
    return _onnx_built(own, quantized, INT8_APART)


def _onnx_built(plan: Plan, graph: bytes, tolerance: float) -> Built:
    def write(out: Path, facts: FileFacts) -> None:
        write_sealed(out, graph, plan.facts(PACKAGES) | facts | {"test": test_entry(plan.probe, tolerance)})

    return Built(onnx_answer(graph), write, graph)


def build_program(plan: Plan) -> Built:
    """One .pt2 file."""
    program = torch_program(plan.classifier, plan.checkpoint)

    def write(out: Path, facts: FileFacts) -> None:
        write_together({out: program_bytes(program, plan.facts(PROGRAM_PACKAGES) | facts)})

    return Built(program_answer(program_bytes(program, {})), write)


def build_weights(plan: Plan) -> Built:
    """The weights, and the facts as JSON beside them."""

    def write(out: Path, facts: FileFacts) -> None:
        content = plan.facts(WEIGHTS_PACKAGES) | network_facts(plan.checkpoint, plan.classifier.loss) | facts
        text = (utf8_json(content, indent=1) + "\n").encode()
        write_together({out: weights_bytes(plan.checkpoint, content), json_beside(out): text})

    return Built(weights_answer(weights_bytes(plan.checkpoint, {}), plan.classifier, plan.checkpoint), write)


BUILDERS: dict[str, Callable[[Plan], Built]] = {
    "onnx": build_onnx,
    "torch_export": build_program,
    "safetensors": build_weights,
}
