"""An ONNX file of `imgrec export` behind the server: ONNX Runtime answers, and image files are decoded here."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imgrec.data.decode import Preprocessing, decode_bytes
from imgrec.errors import CheckpointError, DataError, first_line, lacks_memory
from imgrec.inference.predictor import Prediction
from imgrec.serving.recognizer import HASH_DIGITS, Added, Contents


class OnnxRecognizer:
    """The file answers as it was exported: with its temperature, and its sets or answers.

    Its test image is run first, so that a damaged file or a runtime that computes otherwise is an error here: DataError.
    """

    device: Literal["cpu"] = "cpu"

    def __init__(self, path: Path, *, cores: int, max_pixels: int) -> None:
        import onnxruntime

        from imgrec.export.verify_model import read_file, verify

        onnxruntime.set_default_logger_severity(4)  # its errors are raised too
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores
        try:
            # Once: another may be put in its place at any time, for a reload. A pipe would never end.
            if path.exists() and not path.is_file():
                raise ValueError("it is no regular file")
            content = read_file(str(path))
            difference, tolerance, _ = verify(content, ["CPUExecutionProvider"])
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            facts = self._session.get_modelmeta().custom_metadata_map
            self.classes: list[str] = json.loads(facts["classes"])
            self._steps: Preprocessing = json.loads(facts["preprocessing"])
            self._steps["max_pixels"] = self.max_pixels = min(max_pixels, self._steps["max_pixels"])
            self.weights: str = facts["weights_sha256"][:HASH_DIGITS]
        except Exception as error:  # a file may hold anything; ONNX Runtime has a dozen kinds for what it cannot read or run
            if lacks_memory(error):
                raise DataError(f"{path} cannot be served: the memory does not hold it. End what else uses it.") from error
            reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            raise DataError(f"{path} cannot be served: {reason}. Export it again, or name another.") from error
        if not difference <= tolerance:
            raise DataError(f"{path} gives something else here than PyTorch gave. Type imgrec verify {path}.")
        self.file = str(path)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.adds: Added = "set" if "prediction_set" in self._outputs else "answered" if "answered" in self._outputs else None

    def read(self, content: bytes, name: str) -> Contents:
        """Decoded by `answer`, as images of any size wait for it: 128 of 12 megapixels would be 5 GB."""
        return content, name

    def answer(self, images: Sequence[Contents], top_k: int) -> list[Prediction | DataError | CheckpointError]:
        """Those of one size go through the network together, as far as they have no more pixels than one image may have.

        The graph holds an image several times in float32: 16 of 25 megapixels at once took GB.
        """
        answers: dict[int, Prediction | DataError | CheckpointError] = {}
        sizes: dict[tuple[int, ...], list[tuple[int, NDArray[np.uint8]]]] = defaultdict(list)
        held = 0  # pixels that wait
        for row, (content, name) in enumerate(images):
            try:
                pixels = decode_bytes(content, name, self._steps).permute(1, 2, 0).numpy()
            except DataError as error:
                answers[row] = error
                continue
            area = pixels.shape[0] * pixels.shape[1]
            if held + area > self._steps["max_pixels"]:
                answers |= self._predict_sizes(sizes, top_k)
                sizes.clear()
                held = 0
            sizes[pixels.shape].append((row, pixels))
            held += area
        answers |= self._predict_sizes(sizes, top_k)
        return [answers[row] for row in range(len(images))]

    def _predict_sizes(
        self, sizes: Mapping[tuple[int, ...], Sequence[tuple[int, NDArray[np.uint8]]]], top_k: int
    ) -> dict[int, Prediction | CheckpointError]:
        """By row; images of each size are a batch."""
        answers: dict[int, Prediction | CheckpointError] = {}
        for same in sizes.values():
            rows, batch = zip(*same, strict=True)
            answers |= zip(rows, self._predict(np.stack(batch), top_k), strict=True)
        return answers

    def _predict(self, batch: NDArray[np.uint8], top_k: int) -> list[Prediction | CheckpointError]:
        """uint8 [B, H, W, C]."""
        outputs = dict(zip(self._outputs, self._session.run(self._outputs, {"images": batch}), strict=True))
        predictions: list[Prediction | CheckpointError] = []
        for row, chances in enumerate(outputs["probabilities"]):
            if not np.isfinite(chances).all():
                predictions.append(CheckpointError(f"{self.file}: the network's answer is not a number. Export another run."))
                continue
            order = np.argsort(-chances, kind="stable")
            top = [(self.classes[label], float(chances[label])) for label in order[:top_k]]
            inside = outputs["prediction_set"][row] if self.adds == "set" else None
            names = None if inside is None else [self.classes[label] for label in order if inside[label]]
            answered = bool(outputs["answered"][row]) if self.adds == "answered" else True
            predictions.append(Prediction(*top[0], top, names, answered))
        return predictions
