"""The rate for a global batch, and parameter groups: what weight decay touches, a smaller rate for the layers far from the head."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from imgrec.config.instantiate import instantiate
from imgrec.config.schema import FinetuneConfig, Node, TrainerConfig
from imgrec.errors import ConfigError

DecayOn = Literal["weights", "all"]
BatchRule = Literal["linear", "sqrt", "none"]


def batch_factor(batch: int, /, *, base_batch: int | None, batch_rule: BatchRule) -> float:
    """What optim.lr, written for a global batch of `base_batch`, is multiplied by for one of `batch` samples. base_batch None: 1.

    "linear": batch / base_batch (Goyal 2017): k steps of SGD on small batches move the weights as one on their union does.
    "sqrt": its square root (Krizhevsky 2014), which keeps the variance of a step; for optimizers that divide by the gradient's size
    (Malladi 2022, whose rule moves Adam's betas and eps too; here they stay). "none": 1.
    """
    if base_batch is None or batch_rule == "none":
        return 1.0
    return batch / base_batch if batch_rule == "linear" else math.sqrt(batch / base_batch)


def rate(node: dict[str, Any], batch: int) -> float:
    """The rate that a conf/optim node means for a global batch. ConfigError: no lr, or one of base_batch and batch_rule without the other."""
    if "lr" not in node:
        raise ConfigError(f"optim has no lr (found {', '.join(sorted(node))}), but {node['_target_']} needs it. Set optim.lr.")
    scaled: float = node["lr"] * batch_factor(batch, **_batch_keys(node))
    return scaled


def rate_sentence(node: dict[str, Any], batch: int) -> str:
    """'lr 0.4 = 0.1 x 1024/256 (linear in the global batch)', or 'lr 0.1' where the batch does not count."""
    keys = _batch_keys(node)
    if keys["base_batch"] is None or keys["batch_rule"] == "none":
        return f"lr {node['lr']:g}"
    share, words = f"{batch}/{keys['base_batch']}", "linear in the global batch"
    if keys["batch_rule"] == "sqrt":
        share, words = f"sqrt({share})", "square root of the global batch"
    return f"lr {rate(node, batch):.4g} = {node['lr']:g} x {share} ({words})"


def optimizer_node(node: Node, trainer: TrainerConfig, finetune: FinetuneConfig) -> Node:
    """The conf/optim node without fused kernels where they cannot be used.

    They unscale by themselves, too late for clipping (Lightning refuses them with bf16 too); not all of them take the parts of fsdp; and SGD's wants
    momentum of all parameters or of none, while those that are unfrozen later have none yet.
    """
    clipped_in_16_bits = trainer.precision != "32" and trainer.gradient_clip > 0
    if node.get("fused") and (clipped_in_16_bits or trainer.strategy == "fsdp" or finetune.freeze_epochs):
        return node | {"fused": False}
    return node


def _batch_keys(node: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `batch_factor` in a node. A yaml of one's own may have neither: its lr is taken as it is."""
    found: dict[str, Any] = {key: node[key] for key in ("base_batch", "batch_rule") if key in node}
    if len(found) == 1:
        raise ConfigError(
            f"optim has {next(iter(found))} alone. Write both beside lr, for example base_batch: 256 and batch_rule: linear, or neither."
        )
    return found or {"base_batch": None, "batch_rule": "none"}


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
    node: dict[str, Any],
    net: nn.Module,
    *,
    batch: int,
    decay_on: DecayOn,
    layer_decay: float,
    layers: list[list[str]] | None,
) -> Optimizer:
    """The optimizer of a conf/optim node for `net` and a global batch of `batch` samples, with the groups of `parameter_groups`.

    node: {"_target_", "_partial_", "lr", "base_batch", "batch_rule", ...}, and "weight_decay" where the optimizer has one.
    ConfigError: as `rate`; a layer_decay that cannot be; timm is not installed.
    """
    lr = rate(node, batch)
    groups = parameter_groups(
        net, lr=lr, weight_decay=node.get("weight_decay"), decay_on=decay_on, layer_decay=layer_decay, layers=layers
    )
    own = {key: value for key, value in node.items() if key not in _batch_keys(node)}
    optimizer = instantiate({**own, "lr": lr, "_partial_": True})(groups)
    assert isinstance(optimizer, Optimizer)
    return optimizer
