"""The values of keys that name one of several, checked before torch is imported. They are defined here and nowhere else."""

from typing import Any, Literal

from imgrec.config.options import shipped_targets
from imgrec.config.schema import Monitor

BadImage = Literal["refuse", "skip"]
Cache = Literal["none", "ram"]
Check = Literal["auto", "all"]
Decoder = Literal["auto", "simplejpeg", "torchvision", "torchcodec", "pil"]
Policy = Literal["none", "randaug", "autoaug", "trivial"]
AutoAugPolicy = Literal["imagenet", "cifar10", "svhn"]
Fill = Literal["nearest", "zeros"]
ClassWeights = Literal["none", "balanced"]
FirstLayers = Literal["imagenet", "small"]
Padding = Literal["valid", "same"]
Norm = Literal["none", "batch"]
Activation = Literal["relu", "tanh"]
Pool = Literal["max", "average"]
ResNetDepth = Literal[20, 32, 44, 56, 110, 18, 34, 50, 101, 152]
VGGDepth = Literal[11, 13, 16, 19]
DenseNetDepth = Literal[121, 161, 169, 201]

NAMED_VALUES: dict[str, Any] = {
    "data.on_bad_image": BadImage,
    "data.on_bad_image_eval": BadImage,
    "data.cache": Cache,
    "data.check": Check,
    "data.decoder": Decoder,
    "augment.policy": Policy,
    "augment.autoaug_policy": AutoAugPolicy,
    "augment.fill": Fill,
    "loss.class_weights": ClassWeights,
    "model.stem": FirstLayers,
    "model.head": FirstLayers,
    "model.padding": list[Padding],
    "model.norm": Norm,
    "model.activation": Activation,
    "model.pool": Pool,
    "scheduler.monitor": Monitor,
}
DEPTHS: dict[str, Any] = {
    "imgrec.models.resnet.resnet": ResNetDepth,
    "imgrec.models.vgg.vgg": VGGDepth,
    "imgrec.models.densenet.densenet": DenseNetDepth,
}


def named_types(tree: dict[str, Any]) -> dict[str, Any]:
    """Dotted key to annotation of the keys of a composed tree that name one of several, below targets that imgrec ships."""
    typed = dict(NAMED_VALUES)
    model = tree.get("model")
    if isinstance(model, dict) and (depth := DEPTHS.get(str(model.get("_target_")))) is not None:
        typed["model.depth"] = depth
    return {key: hint for key, hint in typed.items() if _is_shipped(tree, *key.split("."))}


def _is_shipped(tree: dict[str, Any], group: str, key: str) -> bool:
    node = tree.get(group)
    return isinstance(node, dict) and key in node and str(node.get("_target_")) in shipped_targets(group)
