"""The learning rate for a global batch, and parameter groups: weight decay or not, and a rate for each layer."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, Optimizer

from imgrec.config.instantiate import instantiate, wrong_result
from imgrec.config.schema import FinetuneConfig, Node, TrainerConfig
from imgrec.errors import ConfigError
from imgrec.training.optimizer_state import check_on_load

DecayOn = Literal["weights", "all"]
BatchRule = Literal["linear", "sqrt", "none"]


def batch_factor(batch: int, /, *, base_batch: int | None, batch_rule: BatchRule) -> float:
    """The factor on optim.lr, written for a global batch of `base_batch`, for one of `batch`. base_batch None: 1.

    "linear": batch / base_batch (Goyal 2017): k steps of SGD on small batches change weights as one on their union
    does. "sqrt": its square root (Krizhevsky 2014), which keeps the variance of a step; for optimizers that divide by
    the gradient's size (Malladi 2022, whose rule changes Adam's betas and eps too; here they stay). "none": 1.
    """
    if base_batch is None or batch_rule == "none":
        return 1.0
    return batch / base_batch if batch_rule == "linear" else math.sqrt(batch / base_batch)


def written_rate(node: dict[str, Any]) -> float:
    """The learning rate of a conf/optim node, as it is written there; ConfigError where it is not."""
    if "lr" not in node:
        raise ConfigError(f"optim.lr is missing: {node['_target_']} needs it. Write lr: 0.001 into its yaml.")
    return float(node["lr"])


def rate(node: dict[str, Any], batch: int) -> float:
    """The learning rate of a conf/optim node for a global batch.

    ConfigError: no lr, or one of base_batch and batch_rule without the other.
    """
    return float(written_rate(node) * batch_factor(batch, **_batch_keys(node)))


def rate_sentence(node: dict[str, Any], batch: int) -> str:
    """'lr 0.4 = 0.1 x 1024/256 (linear in the global batch)', or 'lr 0.1' where it does not depend on the batch."""
    keys = _batch_keys(node)
    if keys["base_batch"] is None or keys["batch_rule"] == "none":
        return f"lr {written_rate(node):g}"
    factor, rule = f"{batch}/{keys['base_batch']}", "linear in the global batch"
    if keys["batch_rule"] == "sqrt":
        factor, rule = f"sqrt({factor})", "square root of the global batch"
    return f"lr {rate(node, batch):.4g} = {node['lr']:g} x {factor} ({rule})"


def optimizer_node(node: Node, trainer: TrainerConfig, finetune: FinetuneConfig) -> Node:
    """The conf/optim node without fused kernels where they do not work.

    They unscale gradients in their step, after clipping (Lightning refuses them with bf16 too); not all of them take
    sharded tensors; SGD's needs momentum of all parameters or of none, while unfrozen ones have none yet; and its momentum
    begins at zero (see `_begin_momentum_at_zero`), which with dampening is not how torch begins it.
    """
    clipped_in_16_bits = trainer.precision != "32" and trainer.gradient_clip > 0
    if node.get("fused") and (
        clipped_in_16_bits or trainer.strategy == "fsdp" or finetune.freeze_epochs or node.get("dampening")
    ):
        return node | {"fused": False}
    return node


def _batch_keys(node: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `batch_factor` in a node. A user's own yaml may have neither: lr is used unchanged."""
    keys: dict[str, Any] = {key: node[key] for key in ("base_batch", "batch_rule") if key in node}
    if len(keys) == 1:
        ((key, value),) = keys.items()
        other = "batch_rule: linear" if key == "base_batch" else "base_batch: 256"
        raise ConfigError(
            f"optim.{key}={value}: expected base_batch and batch_rule, or neither. Write {other} beside it, or delete it."
        )
    return keys or {"base_batch": None, "batch_rule": "none"}


def _decays(parameter: Parameter, decay_on: DecayOn) -> bool:
    return decay_on == "all" or parameter.ndim >= 2


def decayed(net: nn.Module, decay_on: DecayOn) -> list[Parameter]:
    """The parameters that weight decay and the l1 and l2 penalties apply to, in the order of `net.named_parameters()`.

    "weights": kernels and matrices (ndim >= 2), not norms and biases (He 2019, "Bag of Tricks").
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
    """Groups for a torch optimizer: {"params", "lr", "name"}, and "weight_decay" unless None (the optimizer has none).

    A parameter of layer i of n has the rate lr * layer_decay ** (n - 1 - i): the head the full one, the input the
    smallest (Clark 2020, ELECTRA; Bao 2022, BEiT). `layers` names every parameter once, from input to head; None where
    layer_decay is 1. Frozen parameters are included: they get gradients later, and an optimizer with parameters added
    could not load an older state. The order is that of the layers, then of the parameters.
    """
    names = [name for name, _ in net.named_parameters()]
    if layer_decay == 1:
        layers = [names]
    assert layers is not None
    listed = [name for layer in layers for name in layer]
    assert sorted(listed) == sorted(names), f"layers must name every parameter once: {sorted(set(listed) ^ set(names))}"
    layer_of = {name: index for index, layer in enumerate(layers) for name in layer}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    # sorted is stable: inside a layer the order is the network's.
    for name, parameter in sorted(net.named_parameters(), key=lambda item: layer_of[item[0]]):
        above = len(layers) - 1 - layer_of[name]
        decays = bool(weight_decay) and _decays(parameter, decay_on)
        if (above, decays) not in groups:
            kind = ("decay" if decays else "no_decay") if weight_decay else "all"
            settings = {} if weight_decay is None else {"weight_decay": weight_decay if decays else 0.0}
            label = kind if layer_decay == 1 else f"layer{layer_of[name]}_{kind}"
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
    """The optimizer of a conf/optim node for a global batch of `batch` samples, with the groups of `parameter_groups`.

    ConfigError: as `rate`; timm is not installed.
    """
    lr, weight_decay = rate(node, batch), node.get("weight_decay")
    groups = parameter_groups(net, lr=lr, weight_decay=weight_decay, decay_on=decay_on, layer_decay=layer_decay, layers=layers)
    own = {key: value for key, value in node.items() if key not in _batch_keys(node)}
    optimizer = instantiate({**own, "lr": lr, "_partial_": True})(groups)
    if not isinstance(optimizer, Optimizer):
        raise wrong_result("optim", node, "a torch.optim.Optimizer", optimizer)
    check_on_load(optimizer)
    _begin_momentum_at_zero(optimizer)
    return optimizer


def _begin_momentum_at_zero(optimizer: Optimizer) -> None:
    """Before the first step of a fused SGD: torch leaves that memory as it was until a step writes it.

    A first step with an infinite gradient, as 16-mixed has them, writes nothing, and the next one would take what lay
    there for momentum: NaN, found on an H100 with torch 2.11. From zeros the first step is the same to the bit.
    """

    def begin(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer.state:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)

    if isinstance(optimizer, SGD) and optimizer.defaults["fused"]:
        optimizer.register_step_pre_hook(begin)
