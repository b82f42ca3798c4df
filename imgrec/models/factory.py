"""From a model node to the network."""

from collections.abc import Sequence

from torch import nn

from imgrec.config.instantiate import instantiate
from imgrec.config.schema import RunConfig


def build_network(run: RunConfig, classes: Sequence[str]) -> nn.Module:
    """The network of a run, with as many outputs as there are classes."""
    net = instantiate(run.model, num_classes=len(classes))
    assert isinstance(net, nn.Module)
    return net
