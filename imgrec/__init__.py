"""imgrec: labelled images in, a trained, tested and trustworthy classifier out.

    import imgrec
    result = imgrec.fit(imgrec.config.load("train", ["data=mnist"]))
    answers = imgrec.load("runs/mnist_resnet/1").predict(images)

Importing it imports neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgrec import config as config
    from imgrec.inference.predictor import load as load
    from imgrec.train import fit as fit

__version__ = "0.1.0"
__all__ = ["__version__", "config", "fit", "load"]


# Where each lazy name is; importing them takes torch, or Hydra.
_LAZY = {"config": ("imgrec.config", None), "fit": ("imgrec.train", "fit"), "load": ("imgrec.inference.predictor", "load")}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'imgrec' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    imported = import_module(module)
    return imported if attribute is None else getattr(imported, attribute)
