"""Groups against timm's rules and closed forms; every conf/optim yaml against torch's reference loop or its formula."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
import yaml
from error_parts import raises_error
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from omegaconf import OmegaConf
from torch import nn
from torchvision.models import resnet18

import imgrec
from imgrec.config.load import load_config
from imgrec.config.options import conf_dir
from imgrec.config.schema import RunConfig
from imgrec.errors import ConfigError
from imgrec.inference.checkpoint import load_checkpoint
from imgrec.training.optimizer import BatchRule, batch_factor, build_optimizer, decayed, parameter_groups, rate, rate_sentence
from imgrec.training.optimizer_state import check_on_load

CONF = Path(conf_dir()) / "optim"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def node(name: str) -> dict[str, Any]:
    tree = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    found: dict[str, Any] = tree["optim"] if name == "gd" else tree
    return found


class Small(nn.Module):
    """Two layers and a head; a convolution, a norm, a bias and a matrix among them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(images)).relu().mean(dim=(2, 3)))


LAYERS = [["stem.weight", "stem.bias"], ["norm.weight", "norm.bias"], ["head.weight", "head.bias"]]


def build(name: str, net: nn.Module, **changed: Any) -> torch.optim.Optimizer:
    return build_optimizer({**node(name), **changed}, net, batch=64, decay_on="weights", layer_decay=1.0, layers=None)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(6, 1, 8, 8, generator=generator), torch.arange(6) % 3
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", slow_but("adam", among=NAMES))
def test_a_saved_state_is_loaded_and_one_of_another_shape_is_not(tmp_path: Path, name: str) -> None:
    """A fused kernel would write beyond it. Those that a step changes and those of a run before its first step are loaded."""
    net = Small()
    optimizer = build(name, net)
    build(name, net).load_state_dict(optimizer.state_dict())
    net.stem.requires_grad_(False)
    train(net, optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    saved = torch.load(tmp_path / "state", weights_only=True)
    build(name, net).load_state_dict(saved)
    for index, state in saved["state"].items():
        for key, value in state.items():
            for other in (None, "x", torch.zeros(7)) if isinstance(value, torch.Tensor) else (None, "x"):
                states = {**saved["state"], index: {**state, key: other}}
                with pytest.raises(ValueError, match=f"{key} of the optimizer's state of parameter {index}"):
                    build(name, net).load_state_dict({**saved, "state": states})
        if state:
            with pytest.raises(ValueError, match=f"the optimizer's state of parameter {index} is a dict without"):
                build(name, net).load_state_dict({**saved, "state": {**saved["state"], index: {"other": 1}}})


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.ASGD])
def test_the_state_of_an_optimizer_whose_step_looks_at_values_is_compared_too(kind: type[torch.optim.Optimizer]) -> None:
    net = Small()
    train(net, optimizer := kind(net.parameters()), 2)
    check_on_load(other := kind(net.parameters()))
    saved = optimizer.state_dict()
    other.load_state_dict(saved)
    assert other.state_dict()["state"].keys() == saved["state"].keys()
    for key, value in saved["state"][0].items():
        states = {**saved["state"], 0: {**saved["state"][0], key: value.new_zeros(7)}}
        with pytest.raises(ValueError, match=f"{key} of the optimizer's state of parameter 0 has the shape"):
            other.load_state_dict({**saved, "state": states})


def test_the_history_of_lbfgs_is_that_of_as_many_parameters() -> None:
    net, images, labels = Small(), torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)  # type: ignore[arg-type]
    saved = optimizer.state_dict()
    assert saved["state"][0]["old_dirs"]
    check_on_load(other := torch.optim.LBFGS(net.parameters()))
    other.load_state_dict(saved)
    for key in ("d", "prev_flat_grad", "old_dirs", "old_stps"):
        value = [torch.zeros(7)] if key.startswith("old") else torch.zeros(7)
        with pytest.raises(ValueError, match=f"{key} of the optimizer's state has the shape"):
            other.load_state_dict({**saved, "state": {0: {**saved["state"][0], key: value}}})


def test_a_frozen_parameter_of_integers_is_no_hindrance() -> None:
    net = Small()
    net.index = nn.Parameter(torch.arange(3), requires_grad=False)
    train(net, optimizer := build("adam", net, fused=False), 1)
    build("adam", net, fused=False).load_state_dict(optimizer.state_dict())


# The rate of a global batch

BATCHES = st.integers(1, 2**20)
RULES = st.sampled_from(get_args(BatchRule))


@pytest.mark.parametrize(
    ("rule", "batch", "factor"),
    [("linear", 1024, 4.0), ("linear", 64, 0.25), ("sqrt", 1024, 2.0), ("sqrt", 64, 0.5), ("none", 1024, 1.0)],
)
def test_the_rate_of_a_batch_is_its_closed_form(rule: BatchRule, batch: int, factor: float) -> None:
    assert batch_factor(batch, base_batch=256, batch_rule=rule) == factor
    assert batch_factor(batch, base_batch=None, batch_rule=rule) == 1
    written = {"_target_": "torch.optim.SGD", "lr": 0.1, "base_batch": 256, "batch_rule": rule}
    assert rate(written, batch) == 0.1 * factor
    assert rate({"_target_": "torch.optim.SGD", "lr": 0.1}, batch) == 0.1  # a yaml of one's own without the two keys


@given(rule=RULES, base=BATCHES, batch=BATCHES, further=BATCHES, lr=st.floats(1e-6, 10))
def test_scaling_twice_is_scaling_once_and_the_base_batch_has_the_written_rate(
    rule: BatchRule, base: int, batch: int, further: int, lr: float
) -> None:
    there = batch_factor(batch, base_batch=base, batch_rule=rule) * batch_factor(further, base_batch=batch, batch_rule=rule)
    assert there == pytest.approx(batch_factor(further, base_batch=base, batch_rule=rule))
    assert rate({"lr": lr, "base_batch": base, "batch_rule": rule}, base) == lr  # exactly: a recipe keeps its rate


@given(base=BATCHES, batch=BATCHES)
def test_the_square_of_the_root_rule_is_the_linear_one(base: int, batch: int) -> None:
    root = batch_factor(batch, base_batch=base, batch_rule="sqrt")
    assert root**2 == pytest.approx(batch_factor(batch, base_batch=base, batch_rule="linear"))


def test_linear_scaling_makes_one_step_on_the_union_of_k_batches_where_the_gradient_is_constant() -> None:
    # The premise of Goyal 2017 holds exactly for a linear loss: k steps on its batches are one on all of them, k times as long.
    data = torch.arange(8.0).reshape(4, 2)
    ends = []
    for batch in (1, 4):
        net = nn.Linear(2, 1, bias=False)
        nn.init.ones_(net.weight)
        keys = {"base_batch": 1, "batch_rule": "linear"}
        optimizer = build_optimizer(
            {"_target_": "torch.optim.SGD", "lr": 0.25, **keys}, net, batch=batch, decay_on="all", layer_decay=1.0, layers=None
        )
        for part in data.split(batch):
            optimizer.zero_grad()
            net(part).mean().backward()
            optimizer.step()
        ends.append(net.weight.detach().clone())
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("name", NAMES)
def test_the_scaled_rate_reaches_every_optimizer_and_its_layers(name: str) -> None:
    written = {**node(name), "base_batch": 16, "batch_rule": "sqrt"}
    optimizer = build_optimizer(written, Small(), batch=64, decay_on="weights", layer_decay=0.5, layers=LAYERS)
    head = optimizer.param_groups[-1]["lr"]
    assert head == optimizer.defaults["lr"] == 2 * node(name)["lr"]
    assert [group["lr"] / head for group in optimizer.param_groups if "layer0" in group["name"]] == pytest.approx(
        [0.25] * sum("layer0" in group["name"] for group in optimizer.param_groups)
    )


@pytest.mark.parametrize(
    ("base", "rule", "sentence"),
    [
        (256, "linear", "lr 0.4 = 0.1 x 1024/256 (linear in the global batch)"),
        (256, "sqrt", "lr 0.2 = 0.1 x sqrt(1024/256) (square root of the global batch)"),
        (256, "none", "lr 0.1"),
        (None, "linear", "lr 0.1"),
    ],
)
def test_the_start_screen_says_how_the_rate_comes_about(base: int | None, rule: BatchRule, sentence: str) -> None:
    assert rate_sentence({"lr": 0.1, "base_batch": base, "batch_rule": rule}, 1024) == sentence


@pytest.mark.parametrize(("batch", "samples"), [("4", 4), ("full", 19)])
def test_a_run_steps_at_the_scaled_rate_and_stores_the_written_one(
    small: Callable[..., RunConfig], batch: str, samples: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small("optim.base_batch=2", f"batch_size={batch}", "scheduler=constant", "optim.lr=0.01", "id=a")
    result = imgrec.fit(run)
    assert result["last"]["lr"] == 0.01 * samples / 2
    said = f"SGD lr {0.01 * samples / 2:.4g} = 0.01 x {samples}/2 (linear in the global batch), constant"
    assert said in " ".join(capsys.readouterr().out.split())
    stored = load_checkpoint(f"{run.runs_dir}/{run.name}/a").run.optim
    assert (stored["lr"], stored["base_batch"], stored["batch_rule"]) == (0.01, 2, "linear")


def test_the_default_run_has_the_rate_it_is_measured_with() -> None:
    run = load_config("train", [])
    assert (run.batch_size, rate(run.optim, 64), run.optim["lr"]) == (64, 0.003, 0.003)


# Groups


def test_decay_touches_what_timm_s_touches() -> None:
    timm_optim = pytest.importorskip("timm.optim")
    net = resnet18(num_classes=10)
    _, weights = timm_optim.param_groups_weight_decay(net, weight_decay=0.1)
    ours = parameter_groups(net, lr=0.1, weight_decay=0.1, decay_on="weights", layer_decay=1.0, layers=None)
    found = {id(parameter) for group in ours if group["weight_decay"] == 0.1 for parameter in group["params"]}
    assert found == {id(parameter) for parameter in weights["params"]} == {id(parameter) for parameter in decayed(net, "weights")}
    assert [group["name"] for group in ours] == ["decay", "no_decay"]
    assert len(decayed(net, "all")) == len(list(net.parameters()))


@pytest.mark.parametrize(("weight_decay", "decay_on"), [(0.0, "weights"), (None, "weights"), (0.1, "all")])
def test_equal_settings_are_one_group(weight_decay: float | None, decay_on: Literal["weights", "all"]) -> None:
    net = Small()
    (group,) = parameter_groups(net, lr=0.1, weight_decay=weight_decay, decay_on=decay_on, layer_decay=1.0, layers=LAYERS)
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]
    assert group.get("weight_decay") == weight_decay


def test_layer_decay_is_its_closed_form() -> None:
    net = Small()
    net.stem.weight.requires_grad_(False)  # frozen for now, and in a group all the same
    groups = parameter_groups(net, lr=0.1, weight_decay=0.5, decay_on="weights", layer_decay=0.7, layers=LAYERS)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("layer0_decay", pytest.approx(0.1 * 0.7**2), 0.5),
        ("layer0_no_decay", pytest.approx(0.1 * 0.7**2), 0.0),
        ("layer1_no_decay", pytest.approx(0.1 * 0.7), 0.0),
        ("layer2_decay", 0.1, 0.5),
        ("layer2_no_decay", 0.1, 0.0),
    ]
    by_name = dict(net.named_parameters())
    expected = ["stem.weight", "stem.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert [id(p) for g in groups for p in g["params"]] == [id(by_name[name]) for name in expected]


def test_layers_must_name_every_parameter_once() -> None:
    with pytest.raises(AssertionError, match=r"head\.bias"):
        parameter_groups(
            Small(), lr=0.1, weight_decay=0.0, decay_on="all", layer_decay=0.5, layers=[*LAYERS[:2], ["head.weight"]]
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns_and_keeps_its_settings(name: str) -> None:
    net = Small()
    optimizer = build(name, net)
    for group in optimizer.param_groups:
        assert group["lr"] == node(name)["lr"]
        assert all(parameter.ndim <= 1 for parameter in group["params"]) or group["weight_decay"] == node(name)["weight_decay"]
    losses = train(net, optimizer, 60)
    assert losses[-1] < losses[0] - 0.01
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


@pytest.mark.parametrize("name", [name for name in NAMES if "fused" in node(name)])
def test_the_fused_kernel_is_the_reference_loop(name: str) -> None:
    fused, loop = Small(), Small()
    train(fused, build(name, fused, weight_decay=0.01), 5)
    train(loop, build(name, loop, weight_decay=0.01, fused=False, foreach=False), 5)
    # The convolution's bias has no gradient but rounding before the norm; Adam makes a full step of that.
    for key, value in fused.state_dict().items():
        if key not in ("stem.bias", "norm.running_mean"):
            torch.testing.assert_close(value, loop.state_dict()[key], rtol=1e-4, atol=1e-5)


def test_one_step_of_gd_is_the_gradient_of_the_mean_loss() -> None:
    net, start = Small(), Small()
    train(net, build("gd", net), 1)
    for (name, parameter), before in zip(net.named_parameters(), start.parameters(), strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter, before - node("gd")["lr"] * parameter.grad)


def test_frozen_parameters_stay_and_start_when_they_get_gradients() -> None:
    net = Small()
    optimizer = build("adamw", net)
    before = net.stem.weight.detach().clone()
    net.stem.weight.requires_grad_(False)
    train(net, optimizer, 2)
    torch.testing.assert_close(net.stem.weight, before, rtol=0, atol=0)  # no gradient: no decay either
    net.stem.weight.requires_grad_(True)
    train(net, optimizer, 1)
    assert not torch.equal(net.stem.weight, before)


@pytest.mark.parametrize("shape", [(6, 8), (8, 5, 3, 3)])
def test_muon_steps_along_the_polar_factor_of_the_gradient(shape: tuple[int, ...]) -> None:
    pytest.importorskip("timm")
    generator = torch.Generator().manual_seed(0)
    net = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(shape)), "bias": nn.Parameter(torch.zeros(shape[0]))})
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    weight = net["weight"]
    assert weight.grad is not None
    optimizer = build("muon", net, lr=0.01, nesterov=False, momentum=0.0)
    optimizer.step()
    u, _, v = torch.linalg.svd(weight.grad.flatten(1), full_matrices=False)
    polar = u @ v
    step = -weight.detach().flatten(1) / (0.01 * 0.2 * max(polar.shape) ** 0.5)  # match_rms_adamw: 0.2 * sqrt(longer side)
    torch.testing.assert_close(step, polar, rtol=0, atol=0.15)  # five iterations in bfloat16
    assert (step * polar).sum() / (step.norm() * polar.norm()) > 0.99
    torch.testing.assert_close(net["bias"].abs(), torch.full((shape[0],), 0.01), rtol=1e-4, atol=0)  # AdamW's first step is lr


def _compose(folder: Path, overrides: list[str]) -> dict[str, Any]:
    shutil.copytree(CONF, folder / "optim")
    (folder / "run.yaml").write_text("defaults:\n  - _self_\n  - optim: adam\nbatch_size: 64\n")
    with initialize_config_dir(str(folder), version_base="1.3"):
        tree = OmegaConf.to_container(compose("run", overrides))
    assert isinstance(tree, dict)
    return tree  # type: ignore[return-value]


def test_gd_sets_the_batch_and_the_command_line_wins(tmp_path: Path) -> None:
    expected = {"batch_size": "full", "optim": node("gd")}
    assert _compose(tmp_path / "a", ["optim=gd"]) == expected
    assert _compose(tmp_path / "b", ["optim=gd", "batch_size=8"]) == {**expected, "batch_size": 8}
    assert _compose(tmp_path / "c", [])["batch_size"] == 64


class _NoTimm:
    """An import finder of a machine without timm."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "timm":
            raise ModuleNotFoundError(f"No module named {name!r}", name="timm")


def test_without_timm_the_error_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_NoTimm(), *sys.meta_path])
    with pytest.raises(ConfigError, match=r'Muon.*timm.*pip install "imgrec\[timm\]"'):
        build("muon", Small())


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"lr": 0.1, "batch_rule": "linear"}, ("optim.batch_rule=linear", "base_batch and batch_rule", "base_batch: 256")),
        ({}, ("optim.lr", "torch.optim.SGD", "lr: 0.001")),
    ],
)
def test_what_cannot_be_is_one_sentence(settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    node = {"_target_": "torch.optim.SGD", **settings}
    with raises_error(ConfigError, *parts):
        build_optimizer(node, Small(), batch=64, decay_on="weights", layer_decay=1.0, layers=None)


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_a_first_step_that_overflows_leaves_nothing_in_the_momentum_of_a_fused_optimizer(name: str) -> None:
    """As GradScaler leaves it out, the step after it is the first. torch fills new memory with NaN here."""
    nets = [Small(), Small()]
    torch.use_deterministic_algorithms(True)
    try:
        fused, plain = (build(name, net, fused=fused) for net, fused in zip(nets, (True, False), strict=True))
        for step, overflows in enumerate((True, False, False)):
            for net in nets:
                for index, parameter in enumerate(net.parameters()):
                    gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + index))
                    parameter.grad = torch.full_like(parameter, torch.inf) if overflows else gradient
            fused.grad_scale, fused.found_inf = torch.ones(()), torch.tensor(float(overflows))  # what GradScaler sets
            fused.step()
            if not overflows:
                plain.step()
    finally:
        torch.use_deterministic_algorithms(False)
    for found, expected in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(found, expected)
