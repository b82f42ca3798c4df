"""A PyTorch program (.pt2, torch.export) of the whole way from pixels to probabilities, which needs torch and nothing else."""

import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.functional import interpolate

from imgrec.data.decode import MAX_ASPECT
from imgrec.errors import CheckpointError
from imgrec.export.agreement import FileAnswer
from imgrec.export.classifier import WholeClassifier
from imgrec.export.plain_files import PROGRAM_FACTS
from imgrec.export.resize import FitToSize
from imgrec.export.tracing import tracing_reason, tracing_silenced
from imgrec.files import utf8_json
from imgrec.inference.checkpoint import Checkpoint

EXAMPLE = (2, 41, 57)  # images, height and width of the batch that the program is traced with: none is 1, or equal to another


class FitByTorch(FitToSize):
    """The same pixels by torch's own resize, in less time. A size may be a symbol: there is no branch on one, and no float of one."""

    def forward(self, images: Tensor) -> Tensor:
        images = images.permute(0, 3, 1, 2)
        if self.shortest is None:
            return self._resized(images, self.size, self.size)
        height, width = images.shape[-2:]
        longest = MAX_ASPECT * torch.sym_min(height, width)
        # By indices: of a slice torch.export would demand that it is the whole image, as it is of the example.
        for dim, side in ((2, height), (3, width)):
            kept = torch.sym_min(side, longest)
            images = images.index_select(dim, torch.arange(kept) + _half(side - kept))
        height, width = images.shape[-2:]
        shorter = torch.sym_min(height, width)
        pixels = self._resized(images, self.shortest * height // shorter, self.shortest * width // shorter)
        top, left = (_half(side - self.size) for side in pixels.shape[-2:])
        return pixels[..., top : top + self.size, left : left + self.size]

    def _resized(self, images: Tensor, height: Any, width: Any) -> Tensor:
        return interpolate(images, (height, width), mode="bicubic" if self.cubic else "bilinear", antialias=True).float()


def _half(pixels: Any) -> Any:
    """round(pixels / 2): halves to the even number."""
    return (pixels + pixels // 2 % 2) // 2


def torch_program(classifier: WholeClassifier, checkpoint: Checkpoint) -> ExportedProgram:
    """The classifier as a program on the CPU for any batch, height and width; CheckpointError for a network that cannot be one."""
    if classifier.fit.size == 1:  # an assertion of torch's own
        raise CheckpointError(f"{checkpoint.file}: torch {torch.__version__} resizes no batch to one pixel. Set format=onnx.")
    own = copy.deepcopy(classifier)
    own.fit = FitByTorch(checkpoint.preprocessing)
    own.network.to(memory_format=torch.contiguous_format)  # torch 2.14 warns of other weights when it reads a program
    count, height, width = EXAMPLE
    example = torch.zeros(count, height, width, checkpoint.preprocessing["channels"], dtype=torch.uint8)
    try:
        with torch.no_grad(), tracing_silenced():
            program = torch.export.export(own.eval(), (example,), dynamic_shapes=(dict.fromkeys((0, 1, 2), Dim.DYNAMIC),))
    except Exception as error:  # torch's tracer has its own kinds
        raise CheckpointError(
            f"{checkpoint.file}: torch {torch.__version__} cannot export its network: {tracing_reason(error)}. "
            "Set format=safetensors."
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where in the code of this machine it comes from
    return program


def program_bytes(program: ExportedProgram, facts: Mapping[str, Any]) -> bytes:
    """The file; `torch.export.load(file, extra_files={"facts.json": ""})` gives the facts back, as JSON."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={PROGRAM_FACTS: utf8_json(facts)})
    return file.getvalue()


def program_answer(content: bytes) -> FileAnswer:
    """The outputs of a file."""
    return module_answer(torch.export.load(io.BytesIO(content)).module())


def module_answer(module: nn.Module) -> FileAnswer:
    """The outputs of a `WholeClassifier`, or of its program."""

    def answer(images: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        with torch.no_grad():
            found = module(torch.from_numpy(images))
        return [output.numpy() for output in ((found,) if isinstance(found, Tensor) else found)]

    return answer
