"""The config of a checkpoint calls what is made for its config group and nothing else, by whatever name, and with arguments that load nothing."""

import importlib
import pkgutil
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision
import yaml
from error_parts import raises_error
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from torch import nn

import imgrec.inference.stored_code
from imgrec.config.instantiate import locate
from imgrec.config.schema import target_nodes
from imgrec.errors import ConfigError
from imgrec.inference.stored_code import build_stored, check_targets

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("model", "data", "loss", "augment", "optim", "scheduler", "callbacks", "logger", "trainer", "name", "*", "finetune")


def is_allowed(group: str, target: object) -> bool:
    try:
        check_targets({group: {"_target_": target}})
    except ConfigError:
        return False
    return True


def in_conf(group: str) -> set[str]:
    """What the shipped yaml of a group names."""
    trees = [{group: yaml.safe_load(file.read_text())} for file in CONF.glob(f"{group}/*.yaml") if group != "*"]
    return {node["_target_"] for tree in trees for _, node in target_nodes(tree)}


@cache
def names_in(package: str) -> set[str]:
    """Every name of every module in a package, also what it only imports, and the names in modules that it imports."""
    root = import_module(package)
    found = {f"{package}.{name}" for name in dir(root)}
    for info in pkgutil.walk_packages(root.__path__, f"{package}.", onerror=lambda name: None):
        try:
            module = import_module(info.name)
        except ImportError:  # wandb, mlflow
            continue
        for name in dir(module):
            found.add(f"{info.name}.{name}")
            if isinstance(vars(module).get(name), ModuleType):
                found |= {f"{info.name}.{name}.{inner}" for inner in dir(vars(module)[name])}
    return found


# All of imgrec imports mlflow, which takes a second.
@pytest.mark.parametrize(
    ("package", "group"), slow_but(("imgrec.models", "loss"), among=[("imgrec.models", "loss"), *(("imgrec", g) for g in GROUPS)])
)
def test_of_all_names_in_imgrec_those_of_the_yaml_are_called(package, group):
    names = names_in(package)
    assert "imgrec.models.vgg.torch.load" in names
    assert {name for name in names if is_allowed(group, name)} == {name for name in in_conf(group) if name.startswith("imgrec.")}


@cache
def builders() -> set[object]:
    """What torchvision and timm list as their networks."""
    import timm

    listed = torchvision.models.list_models(module=torchvision.models)
    return {*map(torchvision.models.get_model_builder, listed), *map(timm.models.model_entrypoint, timm.list_models())}


def is_network(target: str) -> bool:
    found = locate(target)
    return found in builders() or (isinstance(found, type) and issubclass(found, nn.Module))


TORCHVISION = ("torchvision.models.resnet18", "torchvision.models.vit_b_16", "torchvision.models.VisionTransformer")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "some"),
    [
        ("torchvision", ("torchvision.models.resnet18", "torchvision.models.vit_b_16", "torchvision.models.VisionTransformer")),
        pytest.param(
            "timm", ("timm.models.resnet18", "timm.models.vision_transformer.VisionTransformer"), marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_of_all_names_in_a_library_the_networks_are_called(library, some):
    names = names_in(library)
    allowed = {name for name in names if is_allowed("model", name)}
    assert allowed >= set(some)
    assert [name for name in allowed if not is_network(name)] == []
    assert not any(is_allowed(group, name) for group in ("data", "loss", "augment", "callbacks") for name in sorted(names)[::20])


@pytest.mark.slow
def test_of_all_names_in_torch_and_lightning_the_optimizers_callbacks_and_loggers_are_allowed():
    import pytorch_lightning as pl

    for group, base, names in (
        ("optim", torch.optim.Optimizer, names_in("torch.optim")),
        ("callbacks", pl.Callback, names_in("pytorch_lightning.callbacks")),
        ("logger", pl.loggers.logger.Logger, names_in("pytorch_lightning.loggers")),
    ):
        allowed = {name for name in names if is_allowed(group, name)}
        assert len(allowed) > 5
        assert [name for name in allowed if not issubclass(locate(name), base)] == []
        assert [name for name in names if is_allowed("model", name)] == []


ELSEWHERE = (
    "os.system", "builtins.eval", "torch.hub.load", "torch.load", "torchvision.models.get_model", "timm.models.create_model",
    "torchvision.models._api.get_model_weights", "timm.models._helpers.load_checkpoint", "timm.create_model", "imgrec.models.",
    "imgrec.models..", "imgrec.models.vgg", "imgrec.models.vgg.vgg\n", " imgrec.models.vgg.vgg", "imgrec.models.__main__.main",
    "imgrec.config.instantiate.instantiate", "torchvision.models.resnet.partial", "torchvision.models.detection.ssd300_vgg16",
    "torchvision.models.quantization.resnet18", "", ".", 5, None, ["os.system"], {"a": 1}, True,
)  # fmt: skip


@pytest.fixture(scope="module")
def libraries() -> None:
    """The modules of the fixed libraries, and what these import in turn."""
    for library in ("timm", "pytorch_lightning"):
        importlib.import_module(library)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("group", GROUPS)
def test_nothing_else_is_called_nor_imported(group, monkeypatch):
    before = set(sys.modules)
    monkeypatch.setattr(imgrec.inference.stored_code, "build", pytest.fail)
    assert [target for target in ELSEWHERE if is_allowed(group, target)] == []
    assert {name for name in set(sys.modules) - before if name.partition(".")[0] not in ("timm", "pytorch_lightning")} == set()


OWN = """
import os
import subprocess
from functools import partial
from os import system
from pathlib import Path
from subprocess import run
from torch.nn import Linear, Module
from imgrec.config.instantiate import instantiate
from imgrec.models.lenet import LeNet

class Net(Module):
    def __init__(self, *, num_classes, width=3):
        super().__init__()

class Other(Module):
    pass

def net(*, num_classes):
    return Net(num_classes=num_classes)

def pair(*, num_classes):
    return 1, 2

def write(path):
    Path(path).touch()

small = partial(Net, width=1)
"""


def test_of_your_own_package_what_it_defines_is_called_and_nothing_that_it_imports(tmp_path, monkeypatch):
    (tmp_path / "mine_stored.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_allowed("model", "mine_stored.Net")
    monkeypatch.setenv("IMGREC_ALLOW", "mine_stored")
    called = []
    for name in dir(import_module("mine_stored")):
        try:
            called.append((name, type(build_stored("model", {"_target_": f"mine_stored.{name}"}, num_classes=3))))
        except ConfigError:
            continue
    module = import_module("mine_stored")
    assert called == [("Net", module.Net), ("net", module.Net)]
    with raises_error(ConfigError, "model._target_=mine_stored.LeNet", "imgrec"):
        build_stored("model", {"_target_": "mine_stored.LeNet"}, num_classes=3)
    with raises_error(ConfigError, "model._target_=mine_stored.pair", "Module", "tuple"):
        build_stored("model", {"_target_": "mine_stored.pair"}, num_classes=3)
    for group in ("data", "loss"):
        with raises_error(ConfigError, f"{group}._target_=mine_stored.Net", "a stored config"):
            build_stored(group, {"_target_": "mine_stored.Net"})
    with raises_error(ConfigError, "model.depth=3", "mine_stored.Net", "no depth"):
        build_stored("model", {"_target_": "mine_stored.Net", "depth": 3}, num_classes=3)


def test_a_network_of_a_library_is_built_with_its_number_of_classes():
    net = build_stored("model", {"_target_": "torchvision.models.resnet18", "num_classes": 3}, num_classes=3)
    assert net.fc.out_features == 3


ARGUMENTS = [
    ({"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}, ("model.weights=DEFAULT", "loads no files")),
    ({"_target_": "torchvision.models.resnet18", "weights": "https://example.org/x.pth"}, ("model.weights=https://",)),
    ({"_target_": "timm.models.resnet10t", "pretrained": True}, ("model.pretrained=true", "loads no files")),
    ({"_target_": "timm.models.resnet10t", "pretrained_cfg": {"file": "x.pth"}}, ("model.pretrained_cfg=", "loads no files")),
    ({"_target_": "timm.models.resnet10t", "cache_dir": "/tmp/x"}, ("model.cache_dir=/tmp/x", "loads no files")),
    ({"_target_": "imgrec.models.lenet.LeNet", "_partial_": True}, ("model._partial_=true", "Module")),
    ({"_target_": "imgrec.models.lenet.LeNet", "weights": "x"}, ("model.weights=x", "no weights")),
]


@pytest.mark.parametrize(("node", "parts"), ARGUMENTS, ids=[parts[0] for _, parts in ARGUMENTS])
def test_an_argument_that_would_load_something_is_refused(node, parts, monkeypatch):
    monkeypatch.setattr(imgrec.inference.stored_code, "build", pytest.fail)
    with pytest.raises(ConfigError) as error:
        build_stored("model", node, num_classes=3)
    assert all(part in str(error.value) for part in parts), error.value


PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:", "file:", "https://", "/", "../", "timm/")


@pytest.mark.slow
@given(before=st.sampled_from(["", "resnet10t.", "resnet10t"]), prefix=st.sampled_from(PREFIXES), name=st.text(max_size=12))
def test_timm_takes_the_names_of_its_networks_only(before, prefix, name):
    import timm.models._factory as factory

    node = {"_target_": "imgrec.models.timm.timm_net", "name": f"{before}{prefix}{name}", "channels": 3, "image_size": 32}
    with pytest.MonkeyPatch.context() as patch:
        for function in ("load_model_config_from_hf", "load_model_config_from_path", "load_checkpoint"):
            patch.setattr(factory, function, pytest.fail)
        with pytest.raises(ConfigError):
            build_stored("model", node, num_classes=3)
