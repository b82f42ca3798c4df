"""The available networks, of imgrec and of the libraries, measured without allocating their weights."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from imgrec.config.annotations import format_value
from imgrec.config.compose import by_size
from imgrec.config.instantiate import instantiate
from imgrec.config.options import conf_dir, option_names
from imgrec.config.schema import Node
from imgrec.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


SOURCES = ("imgrec", "torchvision", "timm", "all")
SIZES = ("auto", "true", "false")
MOST_MEASURED = 100  # networks with sizes=auto: each takes 0.3 to 0.5 s, and timm has more than a thousand


@dataclass(frozen=True, kw_only=True)
class CatalogQuery:
    """The keys of the command; None: the network's own."""

    source: str = "imgrec"
    filter: str = "*"
    image_size: int | None = None
    num_classes: int | None = None
    sizes: str = "auto"
    out: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Network:
    """A network in the list, first with the image size and the number of classes that it is meant for."""

    source: str
    name: str
    option: str  # of conf/model
    settings: Node  # the keys of that yaml which choose it
    image_size: int
    num_classes: int
    parameters: int | None = None
    flops: int | None = None  # for one image; a multiply-add counts as two
    note: str = ""  # why it could not be measured

    @property
    def select(self) -> str:
        """The overrides that choose it."""
        settings = [f"model.{key}={format_value(value)}" for key, value in self.settings.items()]
        return " ".join([f"model={self.option}", *settings])

    def build(self) -> "nn.Module":
        net: nn.Module = instantiate(_node(self.option, self.image_size, self.num_classes) | self.settings)
        return net


def candidates(query: CatalogQuery) -> Iterator[Network]:
    """The networks of the query's source whose names match its filter, for its images and classes; not measured."""
    for source in SOURCES[:-1] if query.source == "all" else (query.source,):
        networks = _imgrec_networks() if source == "imgrec" else _library_networks(source)
        for network in networks:
            if fnmatch(network.name, query.filter):
                image_size, num_classes = query.image_size or network.image_size, query.num_classes or network.num_classes
                yield replace(network, image_size=image_size, num_classes=num_classes)


def measure_network(network: Network) -> Network:
    """The network with its sizes, built without weights; the note says why where it cannot be built for these images."""
    import torch

    from imgrec.models.summary import measure_size

    try:
        try:
            with weightless():
                net = network.build()
        except ConfigError:  # some of timm's networks compute with their weights while they are built
            with torch.device("meta"):
                net = network.build()
        network = replace(network, parameters=sum(parameter.numel() for parameter in net.parameters()))
        return replace(network, flops=measure_size(net, channels=3, image_size=network.image_size).flops)
    except ConfigError as error:
        return replace(network, note=str(error))


@contextmanager
def weightless() -> Iterator[None]:
    """Networks built inside have their parameters on torch's meta device, with a shape but no values.

    Not `torch.device("meta")`: in it networks that compute with tensors (torchvision's RegNet) cannot be built.
    """
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def to_meta(module: "nn.Module", name: str, parameter: "nn.Parameter") -> "nn.Parameter":
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _imgrec_networks() -> Iterator[Network]:
    from imgrec.models.resnet import CIFAR_DEPTHS

    options = option_names("model")
    families = [name for name in options if any(re.match(rf"{name}\d", option) for option in options)]
    for option in options:
        if option in SOURCES or option in families:
            continue
        small = option in ("simple_cnn", "lenet", "speed_cnn", *(f"resnet{depth}" for depth in CIFAR_DEPTHS))
        size, classes = (32, 10) if small else (224, 1000)
        yield Network("imgrec", option, option, {}, size, classes)


def _library_networks(source: str) -> Iterator[Network]:
    if source == "torchvision":
        from imgrec.models.torchvision import torchvision_names

        sizes = dict.fromkeys(torchvision_names(), 224)
    else:
        from imgrec.models.timm import own_size, timm_library

        sizes = {name: own_size(name) for name in timm_library().list_models()}
    for name, size in sizes.items():
        yield Network(source, name, source, {"name": name}, size, 1000)


def _node(option: str, image_size: int, num_classes: int) -> Node:
    """conf/model/OPTION.yaml, resolved for RGB images of this size."""
    from omegaconf import DictConfig, OmegaConf

    OmegaConf.register_new_resolver("by_size", by_size, replace=True)
    data = {"image_size": image_size, "num_classes": num_classes, "channels": 3}
    node = OmegaConf.load(conf_dir() / "model" / f"{option}.yaml")
    assert isinstance(node, DictConfig)
    if "defaults" in node:  # of one depth: its family comes first
        node = OmegaConf.merge(OmegaConf.load(conf_dir() / "model" / f"{node.pop('defaults')[0]}.yaml"), node)
    config = OmegaConf.create({"data": data, "model": node})
    tree = OmegaConf.to_container(config, resolve=True)
    assert isinstance(tree, dict)
    return dict(tree["model"])
