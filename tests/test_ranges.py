"""A limit has one home: what the range of a key allows, the code behind it takes, and nothing else holds it again."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from error_parts import raises_error
from marks import slow_but
from torch import nn

from imgrec import config
from imgrec.config.annotations import format_value, is_number
from imgrec.config.compose import compose_config
from imgrec.config.instantiate import instantiate
from imgrec.config.options import option_names
from imgrec.config.ranges import NOT_NEGATIVE, RANGES
from imgrec.config.schema import RunConfig
from imgrec.errors import ConfigError
from imgrec.training.optimizer import build_optimizer, optimizer_node
from imgrec.training.scheduler import lightning_schedulers


def use_augment(run: RunConfig) -> None:
    augment, draw = instantiate(run.augment), {"seed": 0, "epoch": 0}
    augment.crop_box(8, 8, index=0, **draw)
    augment.sample(torch.randint(256, (3, 8, 8), dtype=torch.uint8), index=0, **draw)
    images = augment.batch(torch.rand(4, 3, 8, 8), indices=torch.arange(4), **draw)
    images, targets = augment.mix(images, torch.eye(4), torch.tensor([1, 0, 3, 2]), seed=0, step=3)
    assert images.isfinite().all()
    assert targets.isfinite().all()


def use_loss(run: RunConfig) -> None:
    loss = instantiate(run.loss)
    loss.set_class_counts(torch.tensor([3, 2, 1, 4]))
    assert loss(torch.randn(4, 4), torch.eye(4)).isfinite().all()


def use_optim(run: RunConfig) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    node = optimizer_node(run.optim, run.trainer, run.finetune)
    optimizer = build_optimizer(node, net, batch=64, decay_on="weights", layer_decay=1.0, layers=None)
    net(torch.randn(2, 3)).sum().backward()
    optimizer.step()


def use_scheduler(run: RunConfig) -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    for entry in lightning_schedulers(run.scheduler, optimizer, total_steps=100, steps_per_epoch=10):
        for _ in range(0 if "Plateau" in type(entry["scheduler"]).__name__ else 100):
            optimizer.step()
            entry["scheduler"].step()
            assert math.isfinite(optimizer.param_groups[0]["lr"])


USES: dict[str, Callable[[RunConfig], None]] = {
    "augment": use_augment, "loss": use_loss, "optim": use_optim, "scheduler": use_scheduler
}  # fmt: skip


def edges(path: str, value: float) -> list[float]:
    """The least value that the range of a key holds, and the greatest, or a large one; of its type."""
    low, high, open_low, open_high = RANGES.get(path, NOT_NEGATIVE)
    if isinstance(value, int):
        return [int(low) + open_low, *([] if high == math.inf else [int(high) - open_high])]
    least = math.nextafter(low, math.inf) if open_low else low
    return [least, 1e30 if high == math.inf else math.nextafter(high, -math.inf) if open_high else high]


def loaded(*words: str) -> RunConfig | None:
    """None where the value does not go with the others."""
    try:
        return config.load("train", words)
    except ConfigError as error:
        if "no effect" in str(error) or "nesterov=true" in str(error):
            return None
        raise


@pytest.mark.parametrize(
    ("group", "option"),
    slow_but(
        ("scheduler", "multistep"), ("loss", "focal"), among=[(group, option) for group in USES for option in option_names(group)]
    ),
)
def test_the_code_takes_what_the_range_allows(group: str, option: str) -> None:
    node = compose_config("train", [f"{group}={option}"])[group]
    for key, default in node.items():
        values = default if isinstance(default, list) else [default]
        if key.startswith("_") or not values or not all(map(is_number, values)):
            continue
        for edge in edges(f"{group}.{key}", values[0]):
            value = format_value([edge] * len(values) if isinstance(default, list) else edge)
            if run := loaded(f"{group}={option}", f"{group}.{key}={value}"):
                USES[group](run)


def test_the_code_takes_every_seed() -> None:
    for seed in edges("seed", 0):
        pl.seed_everything(config.load("train", [f"seed={seed}"]).seed, verbose=False)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("augment.perspective=0.97", ("augment.perspective=0.97", "0 or more and at most 0.95")),
        ("augment=elastic augment.elastic_sigma=1e9", ("augment.elastic_sigma=1000000000.0", "at most 512")),
        ("scheduler=multistep scheduler.milestones_epochs=[4,2]", ("scheduler.milestones_epochs=[4,2]", "scheduler.milestones_epochs=[2,4]")),
        ("data.channels=2", ("data.channels=2", "1 or 3")),
        ("model.channels=1 data=fake", ("model.channels=1", "data.channels=1")),
        ("model=simple_cnn model.image_size=9", ("model.image_size=9", "data.image_size=9")),
        ("optim=nesterov optim.momentum=0", ("optim.momentum=0.0", "optim.nesterov=true", "optim.momentum=0.9", "optim=sgd")),
    ],
)  # fmt: skip
def test_a_limit_is_told_before_torch_is_imported(words: str, parts: tuple[Any, ...]) -> None:
    with raises_error(ConfigError, *parts):
        config.load("train", words.split())


@pytest.mark.slow
def test_keys_of_ones_own_code_may_have_any_value(tmp_path: Path) -> None:
    """Whatever their names are: -7, 0 and 1.5 would be outside of the range of a shipped key of that name."""
    names = {path.rpartition(".")[2] for path in RANGES} - {"num_classes"} | {"limit_x", "channels", "image_size"}
    own = {"_target_": "mine.Own", **dict.fromkeys(names, -7), "more": dict.fromkeys(names, 1.5)}
    for group, content in (("model", own), ("scheduler", own), ("callbacks", {"mine": own})):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(yaml.safe_dump(content))
    tree = compose_config("train", ["model=mine", "scheduler=mine", "callbacks=mine", "model.steps=0"], str(tmp_path))
    assert tree["model"] == own | {"steps": 0}
    assert tree["scheduler"] == tree["callbacks"]["mine"] == own


def test_numbers_of_a_list_are_those_of_its_default() -> None:
    assert config.load("train", ["optim=adam", "optim.betas=[0,0.9]"]).optim["betas"] == [0.0, 0.9]
    assert isinstance(config.load("train", ["optim=adam", "optim.betas=[0,0.9]"]).optim["betas"][0], float)
    milestones = config.load("train", ["scheduler=multistep", "scheduler.milestones_epochs=[2,4]"]).scheduler["milestones_epochs"]
    assert [type(number) for number in milestones] == [int, int]
