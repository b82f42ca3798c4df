"""Any of torchvision's classifiers by name (https://pytorch.org/vision/stable/models.html)."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torchvision
from torch import nn

from imgrec.errors import ConfigError
from imgrec.models.channels import set_channels


def torchvision_net(*, name: str, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's network `name`: float [B, channels, image_size, image_size] -> logits [B, num_classes].

    Vision transformers and MaxViT are built for image_size; the others accept any. Without auxiliary classifiers.
    Raises ConfigError for an unknown name and for a size that the network does not accept.
    """
    check_name(name, torchvision_names(), source="torchvision")
    settings: dict[str, Any] = {"num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        check_patches(name, int(name.rsplit("_", 1)[1]), image_size)
        settings["image_size"] = image_size
    elif name.startswith("maxvit_"):
        settings["input_size"] = (image_size, image_size)
    try:
        net = torchvision.models.get_model(name, **settings)
    except ValueError as error:  # MaxViT's windows
        raise ConfigError(
            f"model {name} does not accept {image_size}x{image_size} images: {' '.join(str(error).split())[:150]} "
            "Set data.image_size=224."
        ) from error
    return set_channels(net, channels)


def torchvision_names() -> list[str]:
    """Every classifier torchvision has, by the name that `model.name` takes."""
    return list(torchvision.models.list_models(module=torchvision.models))


def check_name(name: str, names: Sequence[str], *, source: str) -> None:
    """ConfigError unless `name` is one of the networks that a library has; it suggests the nearest ones."""
    if name not in names:
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"model.name={name}: unknown network. {hint}`imgrec models source={source}` lists {len(names)}.")


def check_patches(name: str, patch: int, image_size: int) -> None:
    """ConfigError unless patches of `patch` pixels tile an image: transformers drop the rest without a warning."""
    if image_size % patch:
        nearest = max(patch, round(image_size / patch) * patch)
        raise ConfigError(
            f"model {name} needs a multiple of its patch size, {patch} pixels, not {image_size}. Set data.image_size={nearest}."
        )
