"""One ONNX file that holds all of a prediction, and what is known about it."""

import base64
import zlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imgrec.errors import CheckpointError
from imgrec.export.agreement import FileAnswer
from imgrec.export.classifier import INPUT, WholeClassifier
from imgrec.export.picture import Probe
from imgrec.export.tracing import tracing_reason, tracing_silenced
from imgrec.inference.checkpoint import Checkpoint, package_versions, weights_hash

OPSET = 18  # of ONNX, from December 2022: runtimes since then read it
MOST_WEIGHTS = 2_000_000_000  # in a file of Protocol Buffers, a little less than 2 GiB
OUTSIDE = "An image file has to be decoded to RGB (or gray), 8 bits a channel, and turned upright by its EXIF orientation before."


def onnx_graph(classifier: WholeClassifier, checkpoint: Checkpoint) -> bytes:
    """The classifier as an ONNX model for any batch, height and width; CheckpointError for a network that cannot be one."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in classifier.state_dict().values())
    if size > MOST_WEIGHTS:
        raise CheckpointError(
            f"{checkpoint.file}: its network has {size / 1e9:.1f} GB of weights, and one ONNX file holds 2 GB. Train a smaller one."
        )
    channels = classifier.preprocess.mean.numel()
    dynamic = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 2 * classifier.fit.size + 3, 3 * classifier.fit.size + 1, channels, dtype=torch.uint8)
    try:
        with tracing_silenced():
            program = torch.onnx.export(
                classifier.eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: dynamic, 1: dynamic, 2: dynamic},),
                input_names=[INPUT],
                output_names=classifier.outputs,
                opset_version=OPSET,
                verbose=False,
            )
        assert program is not None
        return _named_sizes(program.model_proto)
    except Exception as error:  # each step of torch's exporter has its own kinds
        raise CheckpointError(
            f"{checkpoint.file}: its network cannot be written as ONNX: {tracing_reason(error)}. Set format=safetensors."
        ) from error


def _named_sizes(model: Any) -> bytes:
    """The model's bytes, with the sizes of its input and outputs by names that say what they are."""
    names = {INPUT: ("batch", "height", "width")} | {output.name: ("batch",) for output in model.graph.output}
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=False):
            dimension.dim_param = name
    del model.graph.value_info[:]
    for node in model.graph.node:  # where in the code of this machine it comes from
        del node.metadata_props[:]
    content: bytes = model.SerializeToString()
    return content


def onnx_answer(model: bytes) -> FileAnswer:
    """The outputs of a model for uint8 [B, H, W, C], by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def answer(images: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        return [np.asarray(output) for output in session.run(None, {INPUT: images})]

    return answer


def test_entry(probe: Probe, tolerance: float) -> dict[str, Any]:
    """The test image and its answer, as `verify_model.py` reads them.

    tolerance: of a probability. Where leaving antialiasing out moves none by twice as much, as of a network that is never sure of
    one of 1,000 classes, half of what it moves is allowed, and a hundredth at least.
    """
    return {
        "image": base64.b64encode(zlib.compress(probe.image.tobytes(), 9)).decode(),
        "shape": list(probe.image.shape),
        "outputs": {name: output.tolist() for name, output in probe.outputs.items()},
        "tolerance": max(min(tolerance, probe.sensitivity / 2), tolerance / 100),
        "without_antialiasing": probe.sensitivity,
    }


def model_facts(
    classifier: WholeClassifier, checkpoint: Checkpoint, guarantee: Mapping[str, Any] | None, packages: Sequence[str]
) -> dict[str, Any]:
    """What a user has to know of a file, as plain data. packages: that wrote it, beside those of imgrec."""
    return {
        "imgrec": 1,  # version of these entries
        "classes": list(checkpoint.classes),
        "input": f"uint8 [batch, height, width, {classifier.preprocess.mean.numel()}], any size. {OUTSIDE}",
        "preprocessing": dict(checkpoint.preprocessing),  # is in the graph
        "temperature": classifier.temperature,
        "guarantee": guarantee,
        "run": str(checkpoint.file),
        "weights_sha256": weights_hash(checkpoint.content),
        "versions": package_versions() | {name: import_module(name).__version__ for name in packages},
    }
