"""A user's yaml that names code of another kind, or code that breaks its contract, is one sentence before the first step."""

import sys
from pathlib import Path

import pytest
import yaml
from error_parts import raises_error
from small_run import SMALL

import imgrec
from imgrec.config.options import conf_dir
from imgrec.errors import ConfigError, DataError

MODULE = """
import numpy as np
import torch
from torch import nn
from imgrec.data.image_data import ImageData, Splits
from imgrec.data.in_memory import InMemoryImages
from imgrec.models.losses import Loss

def thing():
    return {"no": "such kind"}

class NoSet:
    __init__ = ImageData.__init__

def pair(*, num_classes, channels):
    return {"net": num_classes}

def steps(params, *, lr):
    return {"lr": lr}

def nothing(*, total_steps, steps_per_epoch):
    return {"factor": 1}

def schedule(*, total_steps, steps_per_epoch):
    return lambda step: None

class Net(nn.Module):
    def __init__(self, *, num_classes, channels, width=0, answer="logits"):
        super().__init__()
        self.layer, self.answer = nn.LazyLinear(num_classes) if width else nn.Linear(channels, num_classes), answer

    def forward(self, x):
        logits = self.layer(x.mean((2, 3)))
        return {"pair": (logits, logits), "short": logits[:, :2], "logits": logits}[self.answer]

class Needy(Net):
    def __init__(self, *, num_classes, channels, width):
        super().__init__(num_classes=num_classes, channels=channels)

class Mean(Loss):
    def per_sample(self, logits, targets):
        return nn.functional.cross_entropy(logits, targets)

class Set(ImageData):
    def __init__(self, *, gives="none", **common):
        super().__init__(**common)
        self.gives = gives

    def read(self):
        images, labels = torch.zeros(9, 3, 16, 16, dtype=torch.uint8), np.arange(9) % 3
        if self.gives == "floats":
            images = images.float()
        if self.gives == "labels":
            labels = labels[:4]
        if self.gives == "none":
            return None
        split = [images] if self.gives == "list" else InMemoryImages(images, labels)
        return Splits(("a", "b", "c"), train=split, val=None, test=None)
"""
COMMON = yaml.safe_load((conf_dir() / "data/fake.yaml").read_text())
COMMON = {key: value for key, value in COMMON.items() if key not in ("_target_", "train_samples", "test_samples", "noise")}
LOSS = {"class_weights": "none", "l1": 0.0, "l2": 0.0}
RATE = {"lr": 0.1, "base_batch": None, "batch_rule": "none"}
NET = {"num_classes": "${data.num_classes}", "channels": "${data.channels}"}


def slow_cases(fast, cases):
    """The cases, all slow but those of these numbers."""
    return [pytest.param(*case, marks=() if number in fast else pytest.mark.slow) for number, case in enumerate(cases)]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """own("loss", {...}) trains with FOLDER/loss/own.yaml of this content, which may name own_nodes.NAME."""
    (tmp_path / "own_nodes.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("IMGREC_ALLOW", "own_nodes")
    monkeypatch.delitem(sys.modules, "own_nodes", raising=False)

    def train(group, node):
        (tmp_path / "conf" / group).mkdir(parents=True)
        text = yaml.safe_dump(node, sort_keys=False)
        (tmp_path / "conf" / group / "own.yaml").write_text(text)
        words = [word for word in SMALL if word.partition("=")[0] not in (group, "data.train_samples", "data.test_samples")]
        fake = [word for word in SMALL if word.startswith("data.") and group != "data"]
        words = [word for word in words if not word.startswith(f"{group}.")]
        return imgrec.fit(
            [*words, *fake, f"{group}=own"], config_dir=Path(tmp_path / "conf"), runs_dir=tmp_path / "runs", quiet=True
        )

    return train


@pytest.mark.parametrize(
    ("group", "node", "parts"),
    slow_cases(
        (3,),
        [
            ("data", {"_target_": "own_nodes.NoSet", **COMMON}, ("ImageData of imgrec.data.image_data", "NoSet")),
            ("model", {"_target_": "own_nodes.pair", **NET}, ("Module of torch.nn.modules.module", "dict")),
            ("augment", {"_target_": "own_nodes.thing"}, ("Augment of imgrec.data.augment", "dict")),
            ("loss", {"_target_": "torch.nn.CrossEntropyLoss"}, ("Loss of imgrec.models.losses", "CrossEntropyLoss")),
            ("optim", {"_target_": "own_nodes.steps", "_partial_": True, **RATE}, ("torch.optim.Optimizer", "dict")),
            ("scheduler", {"_target_": "own_nodes.nothing", "_partial_": True}, ("factor", "dict")),
            ("scheduler", {"_target_": "own_nodes.schedule", "_partial_": True}, ("factor", "function")),
            ("logger", {"_target_": "own_nodes.thing"}, ("Logger of pytorch_lightning.loggers.logger", "dict")),
            ("callbacks", {"x": {"_target_": "own_nodes.thing"}}, ("pytorch_lightning.Callback", "dict")),
        ],
    ),
)
def test_code_of_another_kind_is_refused(own, group, node, parts):
    path = f"{group}.x" if group == "callbacks" else group
    target = node.get("_target_", "own_nodes.thing")
    with raises_error(ConfigError, f"{path}._target_={target}", "expected", *parts):
        own(group, node)


@pytest.mark.parametrize(
    ("group", "node", "error", "parts"),
    slow_cases(
        (2, 4, 11),
        [
            ("model", {"_target_": "own_nodes.Needy", **NET}, ConfigError, ("_target_=own_nodes.Needy", "'width'", "yaml")),
            (
                "model",
                {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 3},
                ConfigError,
                ("_target_=torch.nn.Linear",),
            ),
            ("model", {"_target_": "own_nodes.Net", **NET, "answer": "pair"}, ConfigError, ("model Net", "tuple", "[1, 3]")),
            ("model", {"_target_": "own_nodes.Net", **NET, "answer": "short"}, ConfigError, ("model Net", "[1, 2]", "[1, 3]")),
            ("loss", {"_target_": "own_nodes.Mean", **LOSS}, ConfigError, ("loss Mean", "4", "[]", "[4]", "per_sample")),
            ("logger", {"_target_": "torch.zeros"}, ConfigError, ("_target_=zeros", "arguments", "a function of yours")),
            ("optim", {"_partial_": True, **RATE}, ConfigError, ("a config group", "_target_", "lr, base_batch")),
            ("callbacks", {"x": 1}, ConfigError, ("a config group", "_target_", "1")),
            (
                "optim",
                {"_target_": "torch.optim.SGD", "_partial_": True},
                ConfigError,
                ("optim.lr", "torch.optim.SGD", "lr: 0.001"),
            ),
            ("data", {"_target_": "own_nodes.Set", **COMMON}, ConfigError, ("Set.read", "NoneType", "Splits")),
            ("data", {"_target_": "own_nodes.Set", "gives": "list", **COMMON}, ConfigError, ("Set.read", "list", "Splits")),
            (
                "data",
                {"_target_": "own_nodes.Set", "gives": "floats", **COMMON},
                DataError,
                ("a split", "float32 [9, 3, 16, 16]", "uint8"),
            ),
            ("data", {"_target_": "own_nodes.Set", "gives": "labels", **COMMON}, DataError, ("a split", "4 labels", "N labels")),
        ],
    ),
)
def test_code_that_breaks_its_contract_is_refused(own, group, node, error, parts):
    with raises_error(error, *parts):
        own(group, node)
