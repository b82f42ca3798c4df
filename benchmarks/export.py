"""Size of each exported file, and time of a batch in it, beside the predictor in PyTorch: python benchmarks/export.py [rounds=7]

On one thread; images of 500x375 for the network of 224 pixels, of 28x28 for the small one. All formats take turns, so that whatever
else the machine does falls on all; the figures are medians of the processor's time, and the spread is that of its quartiles.
"""

import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from turns import machine

import imgrec
from imgrec import config
from imgrec.config.instantiate import instantiate
from imgrec.data.in_memory import InMemoryImages
from imgrec.export.classifier import INPUT, WholeClassifier
from imgrec.export.int8 import quantize
from imgrec.export.onnx_file import onnx_graph
from imgrec.export.torch_program import program_bytes, torch_program
from imgrec.inference.predictor import Predictor
from imgrec.training.checkpoint import CheckpointWriter, checkpoint_metadata

COLOUR = ("data.channels=3", "data.mean=[0.48,0.45,0.4]", "data.std=[0.23,0.22,0.22]")
CASES = {
    "resnet18 at 224": (("model=resnet18", "model.stem=imagenet", "data.image_size=224", *COLOUR), (375, 500, 3)),
    "simple_cnn at 28": (("model=simple_cnn", "data.image_size=28"), (28, 28, 1)),
}
CLASSES = tuple("0123456789")
Batch = NDArray[np.uint8]


def untrained(words: tuple[str, ...], folder: Path) -> Predictor:
    run = config.load("train", ["data=digits", *words]).with_classes(len(CLASSES))
    torch.manual_seed(0)
    state = {f"net.{key}": value for key, value in instantiate(run.model, num_classes=len(CLASSES)).state_dict().items()}
    keys = ("image_size", "channels", "mean", "std", "resize", "crop_share", "interpolation", "max_pixels", "scale")
    writer = CheckpointWriter(checkpoint_metadata(run, CLASSES, {key: getattr(run.data, key) for key in keys}))
    writer.save_checkpoint({"state_dict": state, "epoch": 0}, folder / "checkpoints" / "best.ckpt")
    writer.wait()
    return imgrec.load(folder / "checkpoints" / "best.ckpt", device="cpu")


def sides(predictor: Predictor, images: Batch) -> dict[str, tuple[int, Callable[[Batch], object]]]:
    """Of each format the bytes of its file, and what answers a batch."""
    classifier = WholeClassifier(predictor)
    program = program_bytes(torch_program(classifier, predictor.checkpoint), {})
    module = torch.export.load(io.BytesIO(program)).module()
    whole = onnx_graph(classifier, predictor.checkpoint)
    training = InMemoryImages(torch.from_numpy(images).movedim(-1, 1), np.zeros(len(images), np.int64))
    eight = quantize(whole, training)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1

    def in_torch(batch: Batch) -> object:
        with torch.no_grad():
            return module(torch.from_numpy(batch))

    def session(graph: bytes) -> Callable[[Batch], object]:
        opened = onnxruntime.InferenceSession(graph, options)
        return lambda batch: opened.run(None, {INPUT: batch})

    weights = predictor.checkpoint.file.stat().st_size
    return {
        "PyTorch, `predictor.probabilities`": (
            weights,
            lambda batch: predictor.probabilities(torch.from_numpy(batch).movedim(-1, 1)),
        ),
        "`torch_export`": (len(program), in_torch),
        "`onnx`": (len(whole), session(whole)),
        "`onnx int8=true`": (len(eight), session(eight)),
    }


def milliseconds(answers: dict[str, Callable[[Batch], object]], batch: Batch, rounds: int) -> dict[str, list[float]]:
    for answer in answers.values():
        answer(batch)
    found: dict[str, list[float]] = {name: [] for name in answers}
    for _ in range(rounds):
        for name, answer in answers.items():
            start = time.process_time()
            answer(batch)
            found[name].append(1e3 * (time.process_time() - start))
    return found


def shown(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    print(f"{machine()}, onnxruntime {onnxruntime.__version__}; medians of {rounds} rounds, in brackets the quartiles\n")
    print("| network | format | MB | ms of 1 image | ms of 32 images |\n| --- | --- | --- | --- | --- |")
    for name, (words, shape) in CASES.items():
        images = np.random.default_rng(0).integers(0, 256, (32, *shape), dtype=np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            formats = sides(untrained(words, Path(folder)), images)
        answers = {label: answer for label, (_, answer) in formats.items()}
        times = [milliseconds(answers, batch, count) for batch, count in ((images[:1], 3 * rounds), (images, rounds))]
        for label, (size, _) in formats.items():
            cells = [
                f"{shown(median(each[label]))} ({shown(quantiles(each[label])[0])} to {shown(quantiles(each[label])[2])})"
                for each in times
            ]
            print(f"| {name} | {label} | {size / 1e6:.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(int(sys.argv[1].removeprefix("rounds=")) if len(sys.argv) > 1 else 7)
