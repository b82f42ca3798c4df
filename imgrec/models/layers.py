"""The head of a network, and its parameters in groups from input to head."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from imgrec.errors import ConfigError


def head_names(net: nn.Module, num_classes: int) -> list[str]:
    """Dotted names of the layers that give the logits: the last Linear or Conv2d with `num_classes` outputs.

    Those in what timm calls the classifier, where it says that: distilled networks (DeiT, LeViT) average two heads.
    """
    names: list[str] = [
        name
        for name, module in net.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == num_classes)
    ]
    if not names:
        raise ConfigError(
            f"model {type(net).__name__} has no head: no linear layer or convolution with {num_classes} outputs. "
            "Set weights=null finetune.freeze_epochs=0 finetune.layer_decay=1."
        )
    get_classifier: Any = getattr(net, "get_classifier", None)
    classifier = get_classifier() if callable(get_classifier) else ()
    parts = classifier if isinstance(classifier, list | tuple) else [classifier]
    known = {layer for part in parts if isinstance(part, nn.Module) for layer in part.modules()}
    return [name for name in names if net.get_submodule(name) in known] or names[-1:]


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list to which each pass through the layer adds its first input."""
    kept: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    try:
        yield kept
    finally:
        hook.remove()


def layers(net: nn.Module, num_classes: int) -> list[list[str]]:
    """The names of `named_parameters`, each once, in groups from the input to the head; the last group is the head.

    Groups follow the order of definition. Sequential and ModuleList give one group per child, and so does a module with
    more than half of all parameters (the encoder of a vision transformer). Modules without a matrix (norms, position
    embeddings) join the group before them; the network's own tensors (class token) join the first group.
    """
    heads = head_names(net, num_classes)
    total = sum(p.numel() for p in net.parameters())
    groups: list[list[str]] = [[]]
    first = {name for name, _ in net.named_parameters(recurse=False)}
    last = {f"{head}.{name}" for head in heads for name, _ in net.get_submodule(head).named_parameters()}
    seen: set[str] = set()
    unique = dict(net.named_parameters())  # a tensor that is used twice is named once
    for block, is_layer in _blocks("", net, total):
        names = [name for name in block if name in unique and name not in first | last | seen]
        seen.update(names)
        if is_layer and groups[-1] and any(unique[name].ndim > 1 for name in names):
            groups.append(names)
        else:
            groups[-1] += names
    groups[0] = [name for name in unique if name in first - last] + groups[0]
    return [*(group for group in groups if group), [name for name in unique if name in last]]


def _blocks(prefix: str, module: nn.Module, total: int) -> Iterator[tuple[list[str], bool]]:
    """Parameter names of each block in the order of definition, and whether it is a layer: a container's own are none."""
    own = [prefix + name for name, _ in module.named_parameters(recurse=False)]
    children = list(module.named_children())
    is_container = prefix == "" or type(module) in (nn.Sequential, nn.ModuleList)
    is_container = is_container or (bool(children) and 2 * sum(p.numel() for p in module.parameters()) > total)
    if not is_container:
        yield [prefix + name for name, _ in module.named_parameters(remove_duplicate=False)], True
        return
    yield own, False
    for name, child in children:
        yield from _blocks(f"{prefix}{name}.", child, total)
