"""Parameter groups: what weight decay touches, and a smaller rate for the layers far from the head."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from imgrec.errors import ConfigError

DecayOn = Literal["weights", "all"]


def _decays(parameter: Parameter, decay_on: DecayOn) -> bool:
    return decay_on == "all" or parameter.ndim >= 2


def decayed(net: nn.Module, decay_on: DecayOn) -> list[Parameter]:
    """What weight decay and the l1 and l2 penalties touch, in the order of `net.named_parameters()`.

    "weights": kernels and matrices (ndim >= 2); norms' scales and biases (ndim <= 1) are left alone (He 2019, "Bag of Tricks").
    "all": every parameter.
    """
    return [parameter for parameter in net.parameters() if _decays(parameter, decay_on)]


def parameter_groups(
    net: nn.Module,
    *,
    lr: float,
    weight_decay: float | None,
    decay_on: DecayOn,
    layer_decay: float,
    layers: Sequence[Sequence[str]] | None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: {"params", "lr", "name"}, and "weight_decay" unless None (an optimizer without the setting).

    A parameter of layer i of n has the rate lr * layer_decay ** (n - 1 - i): the head the full one, the input the smallest
    (Clark 2020, ELECTRA; Bao 2022, BEiT). `layers` names every parameter once, from input to head; None where layer_decay is 1.
    Frozen parameters are in too: they get gradients later, and an optimizer handed new ones could not load an older state.
    The order is that of the layers, then of the parameters; groups of equal settings are one.
    """
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"finetune.layer_decay={layer_decay} must be above 0 and at most 1. Set finetune.layer_decay=1.0")
    names = [name for name, _ in net.named_parameters()]
    if layers is None:
        if layer_decay != 1:
            raise ConfigError(
                f"finetune.layer_decay={layer_decay}, but {type(net).__name__} names no layers. Set finetune.layer_decay=1.0"
            )
        layers = [names]
    listed = [name for layer in layers for name in layer]
    assert sorted(listed) == sorted(names), f"layers must name every parameter once: {sorted(set(listed) ^ set(names))}"

    place = {name: index for index, layer in enumerate(layers) for name in layer}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    # sorted is stable: inside a layer the order is the network's.
    for name, parameter in sorted(net.named_parameters(), key=lambda item: place[item[0]]):
        above = 0 if layer_decay == 1 else len(layers) - 1 - place[name]
        decays = bool(weight_decay) and _decays(parameter, decay_on)
        if (above, decays) not in groups:
            kind = ("decay" if decays else "no_decay") if weight_decay else "all"
            settings = {} if weight_decay is None else {"weight_decay": weight_decay if decays else 0.0}
            label = kind if layer_decay == 1 else f"layer{place[name]}_{kind}"
            groups[above, decays] = {"params": [], "lr": lr * layer_decay**above, "name": label, **settings}
        groups[above, decays]["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    node: dict[str, Any], net: nn.Module, *, decay_on: DecayOn, layer_decay: float, layers: list[list[str]] | None
) -> Optimizer:
    """The optimizer of a conf/optim node for `net`, with the groups of `parameter_groups`.

    node: {"_target_", "_partial_", "lr", ...}, and "weight_decay" where the optimizer has one.
    ConfigError: no lr; a layer_decay that cannot be; timm is not installed.
    """
    if "lr" not in node:
        raise ConfigError(f"optim has no lr (found {', '.join(sorted(node))}), but {node['_target_']} needs it. Set optim.lr.")
    groups = parameter_groups(
        net, lr=node["lr"], weight_decay=node.get("weight_decay"), decay_on=decay_on, layer_decay=layer_decay, layers=layers
    )
    from imgrec.target import build

    optimizer = build({**node, "_partial_": True})(groups)
    assert isinstance(optimizer, Optimizer)
    return optimizer
