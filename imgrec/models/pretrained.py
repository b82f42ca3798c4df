"""Start from learned weights: other classes, other channels, a frozen backbone, layer-wise learning rates."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from imgrec.errors import CheckpointError
from imgrec.models.channels import first_conv, input_kernels
from imgrec.models.layers import head_name


class Source(NamedTuple):
    """Learned weights. state: tensors by the network's names; classes: of its head's rows; hint: what to type on a misfit."""

    label: str
    state: dict[str, Tensor]
    classes: tuple[str, ...]
    hint: str


def load_weights(net: nn.Module, weights: str, *, model: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Copies learned weights into `net`, in place; the head keeps its fresh rows, except those of classes the source has too.

    weights: a name of torchvision's (DEFAULT, IMAGENET1K_V1, ...; DEFAULT alone for timm), or an imgrec checkpoint or run folder.
    model: the node that built `net`. classes: names of its head's rows; torchvision's ImageNet categories are names too.
    The first convolution is fitted to the channels (`input_kernels`). Returns one sentence that says what was taken.
    Raises CheckpointError when the weights cannot be found or do not fit.
    """
    source = _source(weights, model)
    head = head_name(net, len(classes))
    target = net.state_dict()
    given = dict(source.state)
    stem = first_conv(net)[0] + ".weight"
    if stem in given and given[stem].ndim == 4 and given[stem].shape[1] != target[stem].shape[1]:
        given[stem] = input_kernels(given[stem], target[stem].shape[1])

    rows = {f"{head}.weight", f"{head}.bias"} & target.keys()
    wanted = {key: (len(source.classes), *tensor.shape[1:]) if key in rows else tensor.shape for key, tensor in target.items()}
    _check_fit(source, given, wanted)
    kept = _same_rows(source.classes, classes)
    for key in rows:
        fresh = target[key].clone()
        for new, old in kept.items():
            fresh[new] = given[key][old]
        given[key] = fresh
    net.load_state_dict(given)

    names = [classes[i] for i in kept]
    shown = f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
    taken = len(target) - (0 if kept else len(rows))
    return (
        f"taken {taken} of {len(target)} tensors from {source.label}; "
        f"head: {len(kept)} of {len(classes)} class rows kept{shown}, {len(classes) - len(kept)} new"
    )


def _same_rows(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """Place in `new` -> place in `old` of each name that both have; one that `old` has twice tells nothing."""
    if list(old) == list(new):
        return {i: i for i in range(len(new))}
    places = {name: i for i, name in enumerate(old) if list(old).count(name) == 1}
    return {i: places[name] for i, name in enumerate(new) if name in places}


def _check_fit(source: Source, given: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [key for key, shape in wanted.items() if key not in given or given[key].shape != shape]
    extra = [key for key in given if key not in wanted]
    if not wrong and not extra:
        return
    if not wrong:
        found = f"it has {extra[0]}, this network does not"
    elif wrong[0] in given:
        found = f"{wrong[0]} is {list(given[wrong[0]].shape)} there, not {list(wanted[wrong[0]])}"
    else:
        found = f"it lacks {wrong[0]}"
    differ = f"{len(wrong) + len(extra)} of {len(wanted)} tensors differ"
    raise CheckpointError(f"weights from {source.label} do not fit: {found} ({differ}).{source.hint}")


# --- sources -----------------------------------------------------------------------------------------------------------------


def _source(weights: str, model: Mapping[str, Any]) -> Source:
    if Path(weights).exists():
        return _from_run(weights, model)
    family = str(model["_target_"]).split(".")[-2]
    if family == "timm" and weights == "DEFAULT":
        return _from_timm(model)
    name = _torchvision_name(family, model)
    if name is None:
        known = "timm knows DEFAULT alone" if family == "timm" else f"torchvision has no weights for this {family}"
        raise CheckpointError(
            f"weights={weights}: there is no such file or folder, and {known}. "
            "Set weights=PATH to an imgrec checkpoint or run folder, or weights=null."
        )
    return _from_torchvision(weights, name, model)


def _torchvision_name(family: str, model: Mapping[str, Any]) -> str | None:
    """The name torchvision has for the network of a model node; None where it has none."""
    match family:
        case "resnet" | "densenet":
            name = f"{family}{model['depth']}"
        case "vgg":
            name = f"vgg{model['depth']}{'_bn' if model['batch_norm'] else ''}"
        case "torchvision":
            name = str(model["name"])
        case _:
            name = family
    import torchvision

    return name if name in torchvision.models.list_models(module=torchvision.models) else None


def _from_torchvision(weights: str, name: str, model: Mapping[str, Any]) -> Source:
    import torchvision

    enum = torchvision.models.get_model_weights(name)
    member = weights.removeprefix(f"{enum.__name__}.")
    # Members without categories hold features whose head was never learned (vgg16's IMAGENET1K_FEATURES).
    usable = [key for key, value in enum.__members__.items() if value.meta["categories"]]
    if member not in usable:
        raise CheckpointError(
            f"weights={weights}: there is no such file or folder, and for {name} torchvision has {', '.join(usable)}. "
            f"Set weights={usable[-1]}."
        )
    chosen = enum[member]
    file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(chosen.url))
    try:
        net = torchvision.models.get_model(name, weights=chosen, progress=False)  # it mends the names in old files
    except Exception as error:  # no network, a wrong hash, a file cut short, other tensors: four libraries, each with its own
        raise CheckpointError(
            f"weights={weights}: {chosen.url} could not be loaded ({_first_line(error)}). Put that file at {file}."
        ) from error
    state = net.state_dict()
    if getattr(net, "transform_input", False):
        _fold_input_transform(net, state)
    state = {key: value for key, value in state.items() if not re.match(r"(aux1|aux2|AuxLogits)\.", key)}
    changes = [f"model.{key}=imagenet" for key in ("stem", "head") if model.get(key) == "small"]
    if "image_size" in model and model["image_size"] < chosen.meta["min_size"][0]:  # position embeddings
        changes.append(f"data.image_size={chosen.meta['min_size'][0]}")
    hint = f" Set {' '.join(changes)}." if changes else ""
    return Source(f"torchvision's {name} {chosen.name}", state, tuple(chosen.meta["categories"]), hint)


def _fold_input_transform(net: nn.Module, state: dict[str, Tensor]) -> None:
    """googlenet and inception_v3 first map ImageNet's mean and std to 0.5 (`_transform_input`): x -> a x + b per colour.

    Moved into the first kernels and the running mean of the norm after them, so no network needs to know. Exact, but for the
    outermost pixels of googlenet, whose padding is then 0 before the mapping instead of after it.
    """
    a = torch.tensor([0.229, 0.224, 0.225]) / 0.5
    b = (torch.tensor([0.485, 0.456, 0.406]) - 0.5) / 0.5
    name, conv = first_conv(net)
    kernels = conv.weight.detach()
    state[f"{name}.weight"] = kernels * a.view(1, 3, 1, 1)
    mean = name.removesuffix("conv") + "bn.running_mean"
    state[mean] = state[mean] - (kernels.sum(dim=(2, 3)) * b).sum(dim=1)


def _from_timm(model: Mapping[str, Any]) -> Source:
    import torchvision

    from imgrec.models.timm import size_arguments, timm_library

    timm, name = timm_library(), str(model["name"])
    try:
        net = timm.create_model(name, pretrained=True, in_chans=model["channels"], **size_arguments(name, model["image_size"]))
    except Exception as error:  # the hub, the network and torch each have their own
        cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise CheckpointError(
            f"weights=DEFAULT: timm's weights for {name} could not be loaded ({_first_line(error)}). "
            f"They are looked for on the Hugging Face hub and in {cache}."
        ) from error
    rows = int(net.num_classes)
    categories = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]  # ImageNet-1k in the order that timm has too
    classes = tuple(categories) if rows == len(categories) else tuple(f"class {i} of {rows}" for i in range(rows))
    return Source(f"timm's {name}", net.state_dict(), classes, "")


def _from_run(path: str, model: Mapping[str, Any]) -> Source:
    from imgrec.inference.checkpoint import read_checkpoint

    stored = read_checkpoint(Path(path))
    state = {key.removeprefix("net."): value for key, value in stored["state_dict"].items() if key.startswith("net.")}
    return Source(path, state, tuple(stored["imgrec"]["classes"]), _differences(stored["imgrec"]["config"]["model"], model))


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What to type to build the network of another run, from the nodes of both."""
    changes = [] if theirs["_target_"] == ours["_target_"] else [f"model={str(theirs['_target_']).split('.')[-2]}"]
    for key, value in theirs.items():
        if key not in ("_target_", "num_classes", "channels") and (key not in ours or ours[key] != value):
            changes.append(f"data.image_size={value}" if key == "image_size" else f"model.{key}={value}")
    return f" Set {' '.join(changes)}." if changes else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:150]
