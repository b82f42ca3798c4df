"""imgrec: labelled images in, a trained, tested and trustworthy classifier out.

    import imgrec
    result = imgrec.fit(data="mnist", epochs=3)
    predictions = result.load().predict(images)  # or imgrec.load("runs/mnist_resnet/1")

Importing it imports neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imgrec import errors

if TYPE_CHECKING:
    from imgrec import config as config
    from imgrec.inference.predictor import load as load
    from imgrec.train import fit as fit

__version__ = "0.1.0"
__all__ = ["__version__", "config", "errors", "fit", "load"]


# Where each lazy name is; importing them takes torch, or Hydra.
_LAZY = {
    "config": ("imgrec.config", None),
    "fit": ("imgrec.train", "fit"),
    "load": ("imgrec.inference.predictor", "load"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"imgrec has no {name}.{errors.did_you_mean(name, __all__)} It has: {', '.join(__all__)}.")
    module, attribute = _LAZY[name]
    imported = import_module(module)
    return imported if attribute is None else getattr(imported, attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "import_module"})
