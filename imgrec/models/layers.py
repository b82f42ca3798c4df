"""The layers of any network: its head, and the groups of parameters from input to head."""

from collections.abc import Iterator

from torch import nn

from imgrec.errors import ConfigError


def head_name(net: nn.Module, num_classes: int) -> str:
    """Dotted name of the last Linear or Conv2d with `num_classes` outputs: the layer that gives the logits."""
    found: list[str] = [
        name
        for name, module in net.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == num_classes)
    ]
    if not found:
        raise ConfigError(
            f"model {type(net).__name__} has no linear layer with {num_classes} outputs, so no head can be told. "
            "Set weights=null finetune.freeze_epochs=0 finetune.layer_decay=1."
        )
    return found[-1]


def layers(net: nn.Module, num_classes: int) -> list[list[str]]:
    """The names of `named_parameters`, each once, in groups from the input to the head; the last group is the head alone.

    Children in the order of their definition. Sequential and ModuleList give one group per child, and so does a module that holds
    more than half of all parameters (the encoder of a vision transformer). What has no matrix of its own (norms, a position
    embedding of an encoder) belongs to the layer before it; the network's own tensors (class token) to the first layer.
    """
    head = head_name(net, num_classes)
    whole = sum(p.numel() for p in net.parameters())
    groups: list[list[str]] = [[]]
    first = {name for name, _ in net.named_parameters(recurse=False)}
    last = {f"{head}.{name}" for name, _ in net.get_submodule(head).named_parameters()}
    seen: set[str] = set()
    unique = dict(net.named_parameters())  # a tensor that is used twice is named once
    for block, opens in _blocks("", net, whole):
        names = [name for name in block if name in unique and name not in first | last | seen]
        seen.update(names)
        if opens and groups[-1] and any(unique[name].ndim > 1 for name in names):
            groups.append(names)
        else:
            groups[-1] += names
    groups[0] = [name for name in unique if name in first - last] + groups[0]
    return [*(group for group in groups if group), [name for name in unique if name in last]]


def _blocks(prefix: str, module: nn.Module, whole: int) -> Iterator[tuple[list[str], bool]]:
    """Parameter names of each block in definition order, and whether it is a layer: a container's own tensors are none."""
    own = [prefix + name for name, _ in module.named_parameters(recurse=False)]
    children = list(module.named_children())
    opened = prefix == "" or type(module) in (nn.Sequential, nn.ModuleList)
    opened = opened or (bool(children) and 2 * sum(p.numel() for p in module.parameters()) > whole)
    if not opened:
        yield [prefix + name for name, _ in module.named_parameters(remove_duplicate=False)], True
        return
    yield own, False
    for name, child in children:
        yield from _blocks(f"{prefix}{name}.", child, whole)
