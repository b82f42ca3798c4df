"""An ONNX model whose convolutions and linear layers compute with integers of 8 bits, and the accuracy that it costs."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.paired import only_right, paired_cells, paired_interval
from imgrec.data.batch import Request
from imgrec.data.image_set import ImageSet
from imgrec.errors import ConfigError, DataError
from imgrec.export.agreement import FileAnswer
from imgrec.export.classifier import INPUT
from imgrec.export.tracing import records_silenced
from imgrec.files import on_progress
from imgrec.terminal import percent

# With weights of the network. Additions in 8 bits as well made a ResNet-18 a third faster, and changed 1 class in 140.
QUANTIZED = ("Conv", "Gemm", "MatMul")
CALIBRATION_IMAGES = 256  # of the training split, from which the range of each layer's inputs is taken
_AT_ONCE = 32  # images
# Of a probability between two runtimes: where sums are rounded to 8 bits they may take another step (0.005 measured).
INT8_APART = 0.02

_Pixels = NDArray[np.uint8]  # [B, H, W, C]


@dataclass(frozen=True)
class Int8Cost:
    """What the same images get from the file with float32 and from the one with 8 bits."""

    images: int
    float32_accuracy: float
    int8_accuracy: float
    lost: float  # accuracy, positive where 8 bits are worse
    lost_interval: tuple[float, float]  # at 95%, of the pairs
    same_class: int
    difference: float  # the largest of a probability

    def __str__(self) -> str:
        low, high = self.lost_interval
        return (
            f"accuracy {percent(self.int8_accuracy)} with 8 bits, {percent(self.float32_accuracy)} in float32: it costs "
            f"{100 * self.lost:.2f} points (95% interval {100 * low:.2f} to {100 * high:.2f}); the same class for "
            f"{self.same_class:,} of {self.images:,} images"
        )


def quantize(graph: bytes, images: ImageSet) -> bytes:
    """A quarter of the bytes, for ONNX Runtime; inputs of each layer rounded to 256 steps between the extremes that `images` give.

    Weights are rounded for each output channel. Static quantisation in the QDQ form of ONNX Runtime's documentation: the dynamic
    kind, which measures the inputs anew for each batch, was 3 to 30 times slower than float32 for convolutions.
    """
    import onnx

    model = onnx.load_from_string(graph)
    weights = {tensor.name for tensor in model.graph.initializer}
    layers = [node.name for node in model.graph.node if node.op_type in QUANTIZED and weights & {*node.input[:2]}]
    if not layers:  # onnxruntime would take all nodes then, also those of the resize
        raise ConfigError("int8=true: the network has no convolution or linear layer with weights of its own. Set int8=false.")
    from onnxruntime.quantization import QuantType, quantize_static

    with records_silenced(), tempfile.TemporaryDirectory() as folder:  # onnxruntime recommends what torch's exporter has done
        file = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            file,
            _Calibration(images),
            nodes_to_quantize=layers,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return file.read_bytes()


class _Calibration:
    """onnxruntime's CalibrationDataReader: batches of images, then None."""

    def __init__(self, images: ImageSet) -> None:
        rows = np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images))).round().astype(np.int64)
        self._images = len(rows)
        self._batches = _labelled_batches(images.take(rows))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        if batch is None:
            return None
        on_progress.get()("fitting 8 bits", len(batch[0]), self._images)
        return {INPUT: batch[0]}


def measure_cost(images: ImageSet, classes: int, float32: FileAnswer, int8: FileAnswer) -> Int8Cost:
    """Of labelled images, such as the validation split. With a bar (`imgrec.files.on_progress`)."""
    labels, predicted, difference = [], [], 0.0
    for pixels, batch_labels in _labelled_batches(images):
        answers = float32(pixels)[0], int8(pixels)[0]
        difference = max(difference, float(np.abs(answers[0] - answers[1]).max()))
        labels.append(batch_labels)
        predicted.append([answer.argmax(axis=1) for answer in answers])
        on_progress.get()("comparing 8 bits with float32", len(pixels), len(images))
    if not labels:
        raise DataError("int8=true: none of the validation images can be read. Set check=false to write the file all the same.")
    true, (first, second) = np.concatenate(labels), np.concatenate(predicted, axis=1)
    only = only_right(paired_cells(true, first, second, classes))
    lost = paired_interval(only[1], only[0], len(true))
    return Int8Cost(
        images=len(true),
        float32_accuracy=float((first == true).mean()),
        int8_accuracy=float((second == true).mean()),
        lost=lost.value,
        lost_interval=(lost.low, lost.high),
        same_class=int((first == second).sum()),
        difference=difference,
    )


def _labelled_batches(images: ImageSet) -> Iterator[tuple[_Pixels, NDArray[np.int64]]]:
    """Batches of a loader, and their labels; without those that cannot be read, where the run leaves them out."""
    for start in range(0, len(images), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(images)))
        batch = images[Request(0, rows, len(rows))]
        if len(batch.labels):
            yield batch.images.movedim(1, -1).contiguous().numpy(), batch.labels.numpy()
