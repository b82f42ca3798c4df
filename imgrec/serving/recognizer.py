"""What the server asks: an object that reads image files and names their classes. A checkpoint's is here."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch.nn.functional import pad

from imgrec.data.decode import Preprocessing, decode_bytes, fit_to_size
from imgrec.errors import CheckpointError, DataError
from imgrec.inference.checkpoint import weights_hash
from imgrec.inference.guarantee import Guarantee
from imgrec.inference.predictor import Prediction, Predictor

HASH_DIGITS = 12  # of the weights, in each answer
LEAST_ROWS = 4  # of a matrix product on the CPU: fewer take other kernels
LEAST_PACKED = 2**15  # weights of a convolution: arranging fewer takes no time that was seen
_PACKING = ("_reorder_convolution_weight", "_convolution_pointwise")  # operators of torch.ops.mkldnn
Contents = tuple[bytes, str]  # of an image file, and what errors call it
Added = Literal["set", "answered"] | None  # what a guarantee adds to an answer


class Recognizer(Protocol):
    """Both methods are called in several threads at once."""

    @property
    def file(self) -> str: ...
    @property
    def weights(self) -> str: ...  # tells answers of other weights apart
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def device(self) -> str: ...
    @property
    def adds(self) -> Added: ...
    @property
    def max_pixels(self) -> int: ...  # of an image that it reads

    def read(self, content: bytes, name: str) -> Any:
        """What `answer` takes, of an image file that errors call `name`; DataError for one that cannot be read."""

    def answer(self, images: Sequence[Any], top_k: int) -> Sequence[Prediction | DataError | CheckpointError]:
        """The predictions of a batch, each with the `top_k` first classes; a DataError for what turns out not to be an image.

        CheckpointError, raised or instead of a prediction, where the network's answer is not a number.
        """


def pad_rows(network: torch.nn.Module) -> None:
    """Give its linear layers LEAST_ROWS rows or more, so that an image has one answer whatever images are in its batch.

    With 1 to 3 rows they add in another order, which changed probabilities by up to 2.8e-6 (simple_cnn at 224x224). With 4 to 16
    each row is the same bit for bit, in eight layers from 16 to 200,704 inputs that were tried. It costs an image alone 0.02 ms in
    the last layer of a ResNet, and 22 to 37 ms in a layer of 100 million weights, as a VGG has.
    """
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.forward = _padded(layer.forward)  # type: ignore[method-assign, assignment]


def _padded(linear: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(rows: torch.Tensor) -> torch.Tensor:
        missing = LEAST_ROWS - len(rows)
        return linear(rows) if rows.ndim != 2 or missing <= 0 else linear(pad(rows, (0, 0, 0, missing)))[:-missing]

    return forward


def pack_convolutions(network: torch.nn.Module) -> None:
    """Keep the weights of large convolutions as oneDNN computes with them, where torch has it; float32 on the CPU, for inference.

    Without it each call arranges them anew, which an image alone pays in full: ResNet-18 at 224x224 took 51 ms of one core and
    now 41, in a batch of 16 41 and 39 an image (least of 40 and 4 calls, 2-core EPYC), with the same answers bit for bit. They
    are the operators by which torch's compiler does it for frozen weights (torch/_inductor/fx_passes/mkldnn_fusion.py), which
    needs a C++ compiler on the server. They are private: checked with torch 2.14.1, and nothing is packed where they are missing.
    The weights are in the memory twice.
    """
    if not all(hasattr(torch.ops.mkldnn, name) for name in _PACKING):
        return
    for layer in network.modules():
        if type(layer) is not torch.nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            continue
        if layer.weight.dtype == torch.float32 and layer.weight.numel() >= LEAST_PACKED:
            layer.forward = _packed(layer)  # type: ignore[method-assign, assignment]


def _packed(layer: torch.nn.Conv2d) -> Callable[[torch.Tensor], torch.Tensor]:
    operators, shape = torch.ops.mkldnn, (layer.padding, layer.stride, layer.dilation, layer.groups)
    weight, bias = operators._reorder_convolution_weight(layer.weight.detach(), *shape), layer.bias

    def forward(images: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = operators._convolution_pointwise(images, weight, bias, *shape, "none", [], "")
        return packed

    return forward


class CheckpointRecognizer:
    """The network of a checkpoint, with sets or answers where `guarantee` says so.

    It sees `batch_size` images first, so that a network that takes none, or too many for the memory, is an error here.
    """

    def __init__(self, predictor: Predictor, guarantee: Guarantee | None, *, batch_size: int, max_pixels: int) -> None:
        self._predictor, self._guarantee = predictor, guarantee
        self.adds: Added = None if guarantee is None else "set" if guarantee.rule is not None else "answered"
        self.device = predictor.device.type
        if self.device == "cpu":
            pad_rows(predictor.model)
            if predictor.precision == "32":
                pack_convolutions(predictor.model)
        self.file, self.classes = str(predictor.checkpoint.file), predictor.classes
        self.weights = weights_hash(predictor.checkpoint.content)[:HASH_DIGITS]
        steps = predictor.preprocessing
        self.max_pixels = min(max_pixels, steps["max_pixels"])
        self._steps: Preprocessing = {**steps, "max_pixels": self.max_pixels}
        shape = (batch_size, steps["channels"], steps["image_size"], steps["image_size"])
        predictor.probabilities(torch.zeros(shape, dtype=torch.uint8))

    def read(self, content: bytes, name: str) -> Contents | torch.Tensor:
        """On a CPU the file itself, as decoding it beside the network would take the network's core; else uint8 [C, S, S]."""
        return (content, name) if self.device == "cpu" else self._pixels(content, name)

    def answer(self, images: Sequence[Contents | torch.Tensor], top_k: int) -> list[Prediction | DataError]:
        read = [image if isinstance(image, torch.Tensor) else self._pixels_or_error(*image) for image in images]
        batch = [pixels for pixels in read if isinstance(pixels, torch.Tensor)]
        predictions = iter(self._predictor.answer(torch.stack(batch), top_k, self._guarantee) if batch else [])
        return [pixels if isinstance(pixels, DataError) else next(predictions) for pixels in read]

    def _pixels(self, content: bytes, name: str) -> torch.Tensor:
        return fit_to_size(decode_bytes(content, name, self._steps), self._steps)

    def _pixels_or_error(self, content: bytes, name: str) -> torch.Tensor | DataError:
        try:
            return self._pixels(content, name)
        except DataError as error:
            return error
