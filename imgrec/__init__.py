"""imgrec: labelled images in, a trained, tested and trustworthy classifier out.

    import imgrec
    result = imgrec.train(imgrec.config.load("train", ["data=mnist"]))
    answers = imgrec.load("runs/mnist_resnet/1").predict(images)

Importing it imports neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgrec import config as config
    from imgrec.predict import load as load
    from imgrec.train import train as train

__version__ = "0.1.0"
__all__ = ["__version__", "config", "load", "train"]


def __getattr__(name: str) -> Any:
    if name == "config":
        return import_module("imgrec.config")
    if name == "load":
        return import_module("imgrec.predict").load
    if name == "train":
        return import_module("imgrec.train")  # a module that can be called, see there
    raise AttributeError(f"module 'imgrec' has no attribute {name!r}")
