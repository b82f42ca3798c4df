"""An epoch of experiment=mnist_cnn against an epoch of the same network in Keras, one thread each, processor time.

usage: python benchmarks/keras_mnist.py root=DIR [rounds=5]

root: a folder with MNIST. Keras and tensorflow-cpu must be installed (pip install --target=FOLDER, and FOLDER last on the path).
imgrec's epoch has its start in the process, the validation, the checkpoint and the test; that of Keras is `fit` alone.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from turns import Result, machine, processor_seconds, ratio

BATCH = 128


def read_idx(root: str, name: str, header: int) -> NDArray[np.uint8]:
    """The values of a file of MNIST behind its header."""
    return np.fromfile(Path(root, "MNIST", "raw", name), dtype=np.uint8)[header:]


def keras_epoch(root: str, *, turns: Iterator[None]) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    images = read_idx(root, "train-images-idx3-ubyte", 16).reshape(-1, 28, 28, 1).astype("float32") / 255
    labels = read_idx(root, "train-labels-idx1-ubyte", 8)
    layers = keras.layers
    net = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ]
    )
    net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    for _ in turns:
        net.fit(images, labels, batch_size=BATCH, epochs=1, verbose=0)


def imgrec_epoch(root: str, *, turns: Iterator[None]) -> None:
    import torch  # here, as torch and TensorFlow do not live in one process

    import imgrec
    from imgrec.config.load import load_config

    torch.set_num_threads(1)
    words = ["experiment=mnist_cnn", f"data.root={root}", "epochs=1", "trainer.threads=1", f"batch_size={BATCH}", "resume=false"]
    with tempfile.TemporaryDirectory() as runs:
        for _ in turns:
            imgrec.fit(load_config("train", [*words, f"runs_dir={runs}"]), quiet=True)


def results(root: str, *, rounds: int) -> list[Result]:
    sides = {"Keras": partial(keras_epoch, root), "imgrec": partial(imgrec_epoch, root)}
    seconds = processor_seconds(sides, rounds=rounds)
    for name, laps in seconds.items():
        print(f"{name:<8}{median(laps):6.1f} s an epoch ({min(laps):.1f} to {max(laps):.1f})", flush=True)
    found = ratio(seconds, "Keras", "imgrec")
    return [Result(name="mnist_cnn_epoch", peer="Keras", ratio=found, runs=rounds, machine=machine())]


def main() -> None:
    given = {"rounds": "5", **dict(word.split("=", 1) for word in sys.argv[1:])}
    for row in results(given["root"], rounds=int(given["rounds"])):
        print("{name:<20}{ratio:7.2f} times {peer}".format_map(row))


if __name__ == "__main__":
    main()
