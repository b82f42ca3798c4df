"""A frozen network whose head alone is trained, and back."""

from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from imgrec.models.layers import head_name


def freeze(net: nn.Module, num_classes: int) -> None:
    """Until `unfreeze`, only the head learns: the other parameters get no gradient, batch norms keep their running statistics.

    `net.train()` does not wake them. Calling it again changes nothing. Dropout goes on. DDP must be told (`imgrec.training.strategies.DDP.rewrap`).
    """
    head = head_name(net, num_classes)
    for name, parameter in net.named_parameters():
        if not name.startswith(head + ".") and parameter.requires_grad:
            parameter.requires_grad_(False)
            net.__dict__.setdefault(_FROZEN, []).append(name)
    for name, module in net.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats and not name.startswith(head + "."):
            module.eval()
            # On the instance, as nn.Module.train() calls train() of each child; a partial of a function survives copy and pickle.
            module.__dict__["train"] = partial(_keep_mode, module)


def unfreeze(net: nn.Module) -> None:
    """Undoes `freeze`: the parameters it froze learn again (others stay as they are), batch norms follow `net.training`."""
    parameters = dict(net.named_parameters())
    for name in net.__dict__.pop(_FROZEN, []):
        parameters[name].requires_grad_(True)
    for module in net.modules():
        if "train" in module.__dict__:
            del module.__dict__["train"]
            module.train(net.training)


_FROZEN = "_imgrec_frozen"  # on the network: names of the parameters that freeze() switched off


def _keep_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
