"""From a conf/model node to the network."""

from torch import nn

from imgrec.config.instantiate import instantiate
from imgrec.config.schema import Node


def build_network(model: Node, num_classes: int) -> nn.Module:
    """The network of a model node, with that many outputs."""
    net = instantiate(model, num_classes=num_classes)
    assert isinstance(net, nn.Module)
    return net
