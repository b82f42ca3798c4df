"""Any of timm's networks by name (https://github.com/huggingface/pytorch-image-models); needs `imgrec[timm]`."""

from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn

from imgrec.errors import ConfigError
from imgrec.models.torchvision import check_name, check_patches


def timm_net(*, name: str, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """timm's network `name`: float [B, channels, image_size, image_size] -> logits [B, num_classes].

    Networks that are built for one image size (most transformers) are built for this one. Raises ConfigError for an
    unknown name, for a size that the network does not accept, and where timm is not installed.
    """
    timm = timm_library()
    # With a tag it is one of timm's pretrained weights, whose settings may differ; a path or a name of the hub is neither.
    check_name(name, timm.list_pretrained() if "." in name else timm.list_models(), source="timm")
    try:
        net: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=channels, **size_arguments(name, image_size))
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(
            f"timm cannot build model.name={name} for {image_size}x{image_size} images: "
            f"{' '.join(str(error).split())[:150]}. Set data.image_size={own_size(name)}."
        ) from error
    patches = getattr(net, "patch_embed", None)
    if isinstance(patches, timm.layers.PatchEmbed) and not patches.dynamic_img_pad:
        check_patches(name, patches.patch_size[0], image_size)
    return net


def size_arguments(name: str, image_size: int) -> dict[str, Any]:
    """The image size as arguments of `timm.create_model`; none for networks that accept any size."""
    pretrained = timm_library().get_pretrained_cfg(name)
    return {"img_size": image_size} if pretrained is not None and pretrained.fixed_input_size else {}


def own_size(name: str) -> int:
    """Side in pixels of the images that a network was designed for."""
    pretrained = timm_library().get_pretrained_cfg(name)
    return 224 if pretrained is None else int(pretrained.input_size[-1])


def timm_library() -> ModuleType:
    """The timm package; ConfigError where it is not installed."""
    try:
        return import_module("timm")
    except ImportError as error:
        raise ConfigError('model=timm needs timm, which is not installed. Type: pip install "imgrec[timm]"') from error
