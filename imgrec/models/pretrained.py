"""Pretrained weights, of torchvision or timm, and their transfer to a network with other classes or other channels."""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from imgrec.errors import CheckpointError, first_line, first_names
from imgrec.models.channels import first_conv, input_kernels
from imgrec.models.layers import head_names
from imgrec.models.timm import size_arguments, timm_library
from imgrec.models.torchvision import torchvision_names


class PretrainedWeights(NamedTuple):
    """Trained tensors by their names in the network, and the class names of the head's rows."""

    source: str  # as it is shown to the user
    state_dict: dict[str, Tensor]
    classes: tuple[str, ...]
    hint: str  # the sentence that ends the error about tensors that do not fit: which overrides make them fit


def transfer_weights(net: nn.Module, pretrained: PretrainedWeights, classes: Sequence[str]) -> str:
    """Copies pretrained tensors into `net`, in place; of the head the rows of classes that both have.

    classes: names of the head's rows; torchvision's ImageNet categories are names too. The first convolution is adapted
    to the channels. Returns a sentence about what was copied. Raises CheckpointError for tensors that do not fit.
    """
    heads = head_names(net, len(classes))
    target = net.state_dict()
    state = dict(pretrained.state_dict)
    stem = next((f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Conv2d)), None)
    if stem in state and state[stem].ndim == 4:
        state[stem] = input_kernels(state[stem], target[stem].shape[1])

    head_keys = {f"{head}.{name}" for head in heads for name in ("weight", "bias")} & target.keys()
    old_rows = len(pretrained.classes)
    shapes = {key: (old_rows, *tensor.shape[1:]) if key in head_keys else tensor.shape for key, tensor in target.items()}
    _check_shapes(pretrained, state, shapes)
    rows = _common_rows(pretrained.classes, classes)
    for key in head_keys:
        values = target[key].clone()
        for new, old in rows.items():
            values[new] = state[key][old]
        state[key] = values
    net.load_state_dict(state)

    names = [classes[row] for row in rows]
    examples = f" ({first_names(names, 5)})" if names else ""
    copied = len(target) - (0 if rows else len(head_keys))
    return (
        f"{copied} of {len(target)} tensors from {pretrained.source}; "
        f"head: {len(rows)} of {len(classes)} class rows copied{examples}, {len(classes) - len(rows)} new"
    )


def _common_rows(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """Row in `new` -> row in `old` of each name that both have, except names that `old` has twice."""
    if list(old) == list(new):
        return {row: row for row in range(len(new))}
    counts = Counter(old)
    rows = {name: row for row, name in enumerate(old) if counts[name] == 1}
    return {row: rows[name] for row, name in enumerate(new) if name in rows}


def _check_shapes(pretrained: PretrainedWeights, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """CheckpointError unless `state` has exactly the network's keys with their shapes."""
    wrong = [key for key, shape in shapes.items() if key not in state or state[key].shape != shape]
    extra = [key for key in state if key not in shapes]
    if not wrong and not extra:
        return
    if not wrong:
        reason = f"this network has no {extra[0]}"
    elif wrong[0] in state:
        reason = f"{wrong[0]} has the shape {list(state[wrong[0]].shape)}, the network needs {list(shapes[wrong[0]])}"
    else:
        reason = f"{wrong[0]} is missing"
    count = f"{len(wrong) + len(extra)} of {len(shapes)} tensors differ"
    raise CheckpointError(f"weights from {pretrained.source} do not fit: {reason} ({count}).{pretrained.hint}")


def library_weights(weights: str, model: Mapping[str, Any]) -> PretrainedWeights:
    """The weights that torchvision or timm has for the network of a `model` node.

    weights: torchvision's name for them (DEFAULT, IMAGENET1K_V1, ...); for timm DEFAULT only. CheckpointError for
    another name, and where they cannot be loaded.
    """
    if _is_timm(model) and weights == "DEFAULT":
        return _timm_weights(model)
    name, chosen = _torchvision_choice(weights, model)
    return _torchvision_weights(weights, name, chosen, model)


def library_input(weights: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing of `library_weights`, as keys of `data`; nothing is downloaded. CheckpointError for another name."""
    if _is_timm(model) and weights == "DEFAULT":
        known = timm_library().get_pretrained_cfg(str(model["name"]))
        if known is None:
            return {}
        size = int(known.input_size[-1])
        resized, crop = math.floor(size / known.crop_pct), known.crop_mode != "squash"
        return _data_keys(size, resized, known.mean, known.std, bicubic=known.interpolation == "bicubic", crop=crop)
    steps = _torchvision_choice(weights, model)[1].transforms()
    (size,), (resized,) = steps.crop_size, steps.resize_size
    return _data_keys(size, resized, steps.mean, steps.std, bicubic=steps.interpolation.value == "bicubic", crop=True)


def _data_keys(
    size: int, resized: int, mean: Sequence[float], std: Sequence[float], *, bicubic: bool, crop: bool
) -> dict[str, Any]:
    """resized: the shorter side of an image before the crop; without one it is squashed."""
    return {
        "image_size": size,
        "mean": list(mean),
        "std": list(std),
        "resize": "crop" if crop else "squash",
        "crop_share": size / resized if crop else 1.0,
        "interpolation": "bicubic" if bicubic else "bilinear",
    }


def _is_timm(model: Mapping[str, Any]) -> bool:
    return _family(model) == "timm"


def _family(model: Mapping[str, Any]) -> str:
    """The module of the network: 'resnet' of imgrec.models.resnet.resnet."""
    return str(model["_target_"]).rpartition(".")[0].rpartition(".")[2]


def _torchvision_choice(weights: str, model: Mapping[str, Any]) -> tuple[str, WeightsEnum]:
    """torchvision's name of the network of a `model` node, and its weights of a name; CheckpointError where it has none."""
    family = _family(model)
    own = f"{family}{model.get('depth', '')}{'_bn' if model.get('batch_norm') else ''}"
    name = str(model["name"]) if family == "torchvision" else own
    if name not in torchvision_names():
        known = "timm has DEFAULT only" if family == "timm" else f"torchvision has no weights for this {family}"
        raise CheckpointError(
            f"weights={weights}: there is no such file or folder, and {known}. "
            "Set weights=PATH to an imgrec checkpoint or run directory, or weights=null."
        )
    enum = torchvision.models.get_model_weights(name)
    member = weights.removeprefix(f"{enum.__name__}.")
    # Members without categories are backbones without a trained head (vgg16's IMAGENET1K_FEATURES).
    usable = [key for key, value in enum.__members__.items() if value.meta["categories"]]
    if member not in usable:
        raise CheckpointError(
            f"weights={weights}: there is no such file or folder, and for {name} torchvision has {', '.join(usable)}. "
            f"Set weights={usable[-1]}."
        )
    return name, enum[member]


def _torchvision_weights(weights: str, name: str, chosen: WeightsEnum, model: Mapping[str, Any]) -> PretrainedWeights:
    file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(chosen.url))
    try:
        net = torchvision.models.get_model(name, weights=chosen, progress=False)  # renames the keys of old files
    except Exception as error:  # offline, wrong hash, truncated file, other tensors: each library raises its own
        raise CheckpointError(
            f"weights={weights}: {chosen.url} could not be loaded ({first_line(error)[:150]}). Put that file at {file}."
        ) from error
    state = net.state_dict()
    if getattr(net, "transform_input", False):
        _fold_input_transform(net, state)
    state = {key: value for key, value in state.items() if not re.match(r"(aux1|aux2|AuxLogits)\.", key)}
    changes = [f"model.{key}=imagenet" for key in ("stem", "head") if model.get(key) == "small"]
    if "image_size" in model and model["image_size"] < chosen.meta["min_size"][0]:  # position embeddings
        changes.append(f"data.image_size={chosen.meta['min_size'][0]}")
    hint = f" Set {' '.join(changes)}." if changes else ""
    return PretrainedWeights(f"torchvision's {name} {chosen.name}", state, tuple(chosen.meta["categories"]), hint)


def _fold_input_transform(net: nn.Module, state: dict[str, Tensor]) -> None:
    """googlenet and inception_v3 first map ImageNet's mean and std to 0.5: x -> a x + b per colour.

    It is moved into the first kernels and the running mean of the norm after them. Exact except for the outermost
    pixels of googlenet, whose padding is then 0 before the mapping instead of after it.
    """
    a = torch.tensor([0.229, 0.224, 0.225]) / 0.5
    b = (torch.tensor([0.485, 0.456, 0.406]) - 0.5) / 0.5
    name, conv = first_conv(net)
    kernels = conv.weight.detach()
    state[f"{name}.weight"] = kernels * a.view(1, 3, 1, 1)
    mean = name.removesuffix("conv") + "bn.running_mean"
    state[mean] = state[mean] - (kernels.sum(dim=(2, 3)) * b).sum(dim=1)


def _timm_weights(model: Mapping[str, Any]) -> PretrainedWeights:
    timm, name = timm_library(), str(model["name"])
    try:
        net = timm.create_model(name, pretrained=True, in_chans=model["channels"], **size_arguments(name, model["image_size"]))
    except Exception as error:  # the hub, the network and torch each raise their own
        cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise CheckpointError(
            f"weights=DEFAULT: timm's weights for {name} could not be loaded ({first_line(error)[:150]}). "
            f"Connect to the Hugging Face hub, or put them into {cache}."
        ) from error
    rows = int(net.num_classes)
    categories = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]  # ImageNet-1k, in timm's order too
    classes = tuple(categories) if rows == len(categories) else tuple(f"class {i} of {rows}" for i in range(rows))
    return PretrainedWeights(f"timm's {name}", net.state_dict(), classes, "")
