"""imgrec.training.lightning_compat: a name that is gone is said before the run starts, and each one still means what imgrec takes it for."""

import ast
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call

import lightning_fabric
import pytest
import pytorch_lightning as pl
import torch
from error_parts import raises_error
from processes import run_ranks
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, WeightAveraging
from pytorch_lightning.loops import _TrainingEpochLoop, training_epoch_loop
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from pytorch_lightning.trainer.states import TrainerFn
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import imgrec
from imgrec.errors import ConfigError
from imgrec.training import lightning_compat
from imgrec.training.lightning_compat import (
    KNOWN_WARNINGS,
    STEP_HOOKS,
    LoopPosition,
    NoProfiler,
    QuickHooks,
    UnsupportedVersionError,
    UnwrappedDDP,
    driver_asked,
    find_averages,
    forget_restart,
    is_within_batch,
    is_within_epoch,
    prepare_trainer,
    read_loop_position,
    restore_trained_weights,
    set_loop_position,
    silence_known_warnings,
    skip_unused_hooks,
)
from imgrec.training.module import Classifier
from imgrec.training.torch_compat import remove_ddp_hooks

MICRO_BATCHES, ACCUMULATE, EPOCHS = 5, 2, 3
pytestmark = pytest.mark.filterwarnings(*(f"ignore:.*{known}" for known in KNOWN_WARNINGS))


class Tiny(pl.LightningModule):
    """Counts what it is given; its rate falls on a plateau, which every validation is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.trained: list[tuple[int, int]] = []
        self.validated: list[tuple[int, int]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.trained.append((self.current_epoch, batch_idx))
        return self.layer(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.validated.append((self.current_epoch, batch_idx))
        self.log("same", 1.0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 1.0)
        watch = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": watch, "monitor": "same"}}


class Loads(Callback):
    """Resumes from the position that it is given."""

    def __init__(self, position: LoopPosition) -> None:
        self.position = position

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        set_loop_position(checkpoint["loops"], self.position, micro_batches=MICRO_BATCHES, accumulate=ACCUMULATE)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        forget_restart(trainer)


def make_trainer(*callbacks: Callback, prepare: bool = True, **more: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": EPOCHS,
            "accumulate_grad_batches": ACCUMULATE,
            "num_sanity_val_steps": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": list(callbacks),
            **more,
        }
    )
    if prepare:
        prepare_trainer(trainer)
    return trainer


def fit(trainer: pl.Trainer, module: Tiny | None = None, ckpt_path: Path | None = None) -> Tiny:
    module = module or Tiny()
    images = torch.arange(1.0, MICRO_BATCHES + 1)[:, None]
    trainer.fit(module, DataLoader(images, batch_size=1), DataLoader(images[:2], batch_size=1), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return module


# Names


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (_SignalConnector, "register_signal_handlers", "Trainer._signal_connector.register_signal_handlers"),
        (_TrainingEpochLoop, "_build_kwargs", "Trainer.fit_loop.epoch_loop._build_kwargs"),
        (_TrainingEpochLoop, "_broadcast_sigterm_tensor", "Trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor"),
        (DistributedDataParallel, "_remove_autograd_hooks", "DistributedDataParallel._remove_autograd_hooks"),
        (Strategy, "_setup_model", "Strategy._setup_model"),
    ],
)
def test_a_method_that_is_gone_is_said(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, said: str) -> None:
    trainer = make_trainer(prepare=False)
    monkeypatch.delattr(owner, name)
    with pytest.raises(UnsupportedVersionError) as error:
        prepare_trainer(trainer)
    assert f" {said}," in str(error.value)
    assert "pip install 'pytorch-lightning>=2.6.4,<2.7'" in str(error.value)


@pytest.mark.parametrize("path", lightning_compat.TRAINER_NAMES)
def test_every_name_on_the_trainer_is_looked_up(path: str) -> None:
    outer, _, last = path.rpartition(".")
    trainer = MagicMock(spec_set=["fit_loop", "_signal_connector"])
    owner = trainer
    for name in outer.split("."):
        owner = getattr(owner, name)
    delattr(owner, last)
    with pytest.raises(UnsupportedVersionError, match=f"MagicMock.{path}"):
        prepare_trainer(trainer)


def test_an_average_that_is_gone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightAveraging, "__init__", lambda self: None)
    with pytest.raises(UnsupportedVersionError, match=r"WeightAveraging\._average_model"):
        prepare_trainer(make_trainer(prepare=False))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fit: fit.pop("epoch_progress"), "epoch_progress"),
        (lambda fit: fit["epoch_progress"]["current"].pop("processed"), "current.processed"),
        (lambda fit: fit.pop("epoch_loop.batch_progress"), "epoch_loop.batch_progress"),
        (lambda fit: fit["epoch_loop.batch_progress"].pop("is_last_batch"), "epoch_loop.batch_progress.is_last_batch"),
        (lambda fit: fit["epoch_loop.batch_progress"]["total"].pop("started"), "total.started"),
        (lambda fit: fit.pop("epoch_loop.val_loop.batch_progress"), "epoch_loop.val_loop.batch_progress"),
        (lambda fit: fit["epoch_loop.state_dict"].pop("_batches_that_stepped"), "epoch_loop.state_dict._batches_that_stepped"),
    ],
)
def test_another_layout_of_the_loops_is_said(monkeypatch: pytest.MonkeyPatch, change: Any, said: str) -> None:
    trainer = make_trainer(prepare=False)
    state = trainer.fit_loop.state_dict()
    change(state)
    monkeypatch.setattr(trainer.fit_loop, "state_dict", lambda: state)
    with pytest.raises(UnsupportedVersionError, match=rf" {said} in the loops"):
        prepare_trainer(trainer)


# What they mean


class Records(Callback):
    """The order of hooks, each with the position and what is known of the batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def note(self, hook: str, trainer: pl.Trainer) -> None:
        now = read_loop_position(trainer)
        self.seen.append((hook, now.epoch, now.done, now.stage, now.step, is_within_batch(trainer), is_within_epoch(trainer)))


HOOKS = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_validation_start",
    "on_validation_batch_start", "on_validation_end", "on_train_epoch_end", "on_train_end",
)  # fmt: skip
for hook in HOOKS:
    setattr(Records, hook, lambda self, trainer, *args, hook=hook: self.note(hook, trainer))


def test_the_order_of_hooks_and_the_position_in_each() -> None:
    records = Records()
    fit(make_trainer(records, max_epochs=1))
    steps: list[tuple[Any, ...]] = []
    for batch in range(MICRO_BATCHES):  # steps after micro-batches 2, 4 and 5
        step = batch // ACCUMULATE
        steps.append(("on_train_batch_start", 0, step, "train", step, True, True))
        stepped = batch % 2 == 1 or batch == MICRO_BATCHES - 1
        if stepped:
            steps.append(("on_before_optimizer_step", 0, step, "train", step, True, True))
        steps.append(("on_train_batch_end", 0, step, "train", step + stepped, True, True))
    assert records.seen == [
        ("on_train_start", 0, 0, "train", 0, False, False),
        ("on_train_epoch_start", 0, 0, "train", 0, False, False),
        *steps,
        ("on_validation_start", 0, 3, "validate", 3, False, True),
        ("on_validation_batch_start", 0, 3, "validate", 3, False, True),
        ("on_validation_batch_start", 0, 3, "validate", 3, False, True),
        ("on_validation_end", 0, 3, "validate", 3, False, True),
        ("on_train_epoch_end", 1, 3, "validate", 3, False, False),
        ("on_train_end", 1, 3, "validate", 3, False, False),
    ]


ALL = [(epoch, batch) for epoch in range(EPOCHS) for batch in range(MICRO_BATCHES)]
VALIDATED = [(epoch, batch) for epoch in range(EPOCHS) for batch in range(2)]


@pytest.mark.parametrize(
    ("position", "trained", "validated"),
    [
        (LoopPosition(0, 0, "train", 0), ALL, VALIDATED),
        (LoopPosition(0, 2, "train", 2), ALL[4:], VALIDATED),
        (LoopPosition(1, 0, "train", 3), ALL[5:], VALIDATED[2:]),
        (LoopPosition(1, 1, "train", 4), ALL[7:], VALIDATED[2:]),
        (LoopPosition(1, 3, "validate", 6), ALL[10:], VALIDATED[2:]),
    ],
)
def test_a_run_resumes_at_the_position_that_was_written(
    tmp_path: Path, position: LoopPosition, trained: list[Any], validated: list[Any]
) -> None:
    first = make_trainer(max_epochs=0)
    fit(first)
    first.save_checkpoint(tmp_path / "x.ckpt")
    trainer = make_trainer(Loads(position))
    module = fit(trainer, ckpt_path=tmp_path / "x.ckpt")
    assert module.trained == trained
    assert module.validated == validated
    # One validation is better than none before it, each after that is on the plateau.
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5 ** (len(validated) // 2 - 1)


@pytest.mark.parametrize("prepared", [True, False])
def test_signals_stay_with_imgrec(prepared: bool) -> None:
    """Unprepared, Lightning takes SIGTERM: then this test would notice that the method means something else."""
    found = []

    class Asks(Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        fit(make_trainer(Asks(), prepare=prepared, max_epochs=1))
        assert (found == [signal.default_int_handler]) == prepared
    finally:
        signal.signal(signal.SIGTERM, before)


# What Lightning does in each step


class QuickTiny(QuickHooks, Tiny):
    def __init__(self) -> None:
        super().__init__()
        skip_unused_hooks(self, pl.LightningModule)


@pytest.mark.parametrize("hook", STEP_HOOKS)
def test_a_hook_that_does_something_is_called_as_often_as_before(hook: str) -> None:
    """And a step trains the same weights, whether the others are passed over or not."""

    def run(prepare: bool) -> tuple[list[str], torch.Tensor]:
        called: list[str] = []

        def noted(self: Any, *args: Any, **more: Any) -> None:
            called.append(type(self).__name__)

        callback = type("Noted", (Callback,), {hook: noted})()
        torch.manual_seed(0)
        module = type("NotedTiny", (QuickTiny if prepare else Tiny,), {hook: noted})()
        fit(make_trainer(callback, Callback(), prepare=prepare, max_epochs=1, profiler=NoProfiler()), module)
        return called, module.layer.weight

    (quick, ours), (plain, theirs) = run(prepare=True), run(prepare=False)
    assert quick == plain != []
    assert torch.equal(ours, theirs)


def test_what_is_not_needed_in_a_step_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unprepared, each is done: then this test would notice that Lightning no longer does it that way."""
    profiles: list[str] = []
    signatures: list[Any] = []
    names: list[str] = []
    profile, inspected, set_name = (
        PassThroughProfiler.profile,
        training_epoch_loop.is_param_in_hook_signature,
        nn.Module.__setattr__,
    )
    monkeypatch.setattr(PassThroughProfiler, "profile", lambda self, name: profiles.append(name) or profile(self, name))
    monkeypatch.setattr(
        training_epoch_loop,
        "is_param_in_hook_signature",
        lambda *args, **more: signatures.append(args) or inspected(*args, **more),
    )
    monkeypatch.setattr(
        nn.Module,
        "__setattr__",
        lambda self, name, value: (names.append(name) if name == "_current_fx_name" else None) or set_name(self, name, value),
    )
    for prepare in (True, False):
        profiler = NoProfiler() if prepare else None
        trainer = make_trainer(Callback(), prepare=prepare, max_epochs=1, profiler=profiler)
        fit(trainer, QuickTiny() if prepare else Tiny())
        assert [bool(found) for found in (profiles, signatures, names)] == [not prepare] * 3
        assert any("[Callback]" in name and "on_train_batch_start" in name for name in profiles) != prepare


def test_on_the_cpu_adam_asks_the_driver_and_not_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(prepare=False)
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: asked.append("NVML") or 0)
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.Adam([weight])
    before = os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
    with driver_asked(trainer):
        optimizer.step()
        assert asked == []
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == before == "1"
    optimizer.step()
    assert asked != []  # else torch no longer asks, and driver_asked can go


def test_between_two_batches_lightning_runs_no_collective() -> None:
    def work(rank: int) -> list[int]:
        broadcasts: list[int] = []
        broadcast = distributed.broadcast

        def counted(*args: Any, **more: Any) -> Any:
            broadcasts[-1] += 1
            return broadcast(*args, **more)

        class Counts(Callback):
            def on_train_batch_end(self, *args: Any) -> None:
                broadcasts.append(0)
                distributed.broadcast = counted

            def on_train_batch_start(self, *args: Any) -> None:
                distributed.broadcast = broadcast

        found = []
        for prepare in (True, False):
            fit(
                make_trainer(
                    Counts(), prepare=prepare, max_epochs=1, devices=2, strategy=DDPStrategy(cluster_environment=env(rank))
                )
            )
            found.append(sum(broadcasts[:-1]))
            broadcasts.clear()
            distributed.broadcast = broadcast
        return found

    for found in run_ranks(2, work, group=True):
        assert found[0] == 0
        assert found[1] > 0


def env(rank: int) -> Any:
    from lightning_fabric.plugins.environments import LightningEnvironment

    class Two(LightningEnvironment):
        creates_processes_externally = True

        def world_size(self) -> int:
            return 2

        def global_rank(self) -> int:
            return rank

        def local_rank(self) -> int:
            return rank

    return Two()


def test_the_average_stands_in_during_validation_alone() -> None:
    weights: dict[str, list[float]] = {"train": [], "validate": [], "restored": [], "average": []}

    class Looks(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
            weights["train"] = [pl_module.layer.weight.item()]
            (average,) = find_averages(trainer)
            weights["average"] = [average.layer.weight.item()]

        def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
            if args[1] == 1:
                weights["validate"].append(pl_module.layer.weight.item())
                restore_trained_weights(trainer)
                weights["restored"].append(pl_module.layer.weight.item())
                restore_trained_weights(trainer)  # and back

    fit(make_trainer(EMAWeightAveraging(decay=0.5), Looks(), max_epochs=1))
    assert weights["restored"] == weights["train"]
    assert weights["validate"] == weights["average"]
    assert weights["validate"] != weights["train"]


def test_a_module_is_wrapped_anew_after_its_hooks_are_removed() -> None:
    def work(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        net[0].requires_grad_(False)
        images = torch.full((1, 2), float(rank + 1))
        old = DistributedDataParallel(net)
        old(images).sum().backward()
        remove_ddp_hooks(old)
        net[0].requires_grad_(True)
        net.zero_grad()
        net(images).sum().backward()  # nothing is reduced
        alone = net[1].weight.grad.clone()
        net.zero_grad()
        new = DistributedDataParallel(net)  # one without a name would be gone before backward
        new(images).sum().backward()
        return alone, net[1].weight.grad.clone()

    (one, mean), (other, same) = run_ranks(2, work, group=True)
    assert not torch.equal(one, other)
    torch.testing.assert_close(mean, (one + other) / 2)
    assert torch.equal(mean, same)


def test_what_is_not_wrapped_is_on_its_device_before_its_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    order, strategy, trainer = MagicMock(), UnwrappedDDP(), MagicMock()
    for name in (
        "accelerator",
        "precision_plugin",
        "model_to_device",
        "setup_optimizers",
        "setup_precision_plugin",
        "root_device",
    ):
        monkeypatch.setattr(UnwrappedDDP, name, getattr(order, name))
    strategy.model = nn.Linear(1, 1)
    trainer.state.fn = TrainerFn.FITTING
    strategy.setup(trainer)
    assert [one[0] for one in order.mock_calls] == [
        "accelerator.setup", "precision_plugin.convert_module", "model_to_device", "setup_optimizers", "setup_precision_plugin",
    ]  # fmt: skip
    assert order.mock_calls[0] == call.accelerator.setup(trainer)
    assert strategy.model is order.precision_plugin.convert_module.return_value  # not in DistributedDataParallel


@pytest.mark.slow
def test_each_known_warning_is_still_one() -> None:
    """Its text stands in a string of the installed packages, so that a reworded one is noticed here and not on a user's screen."""
    folders = [Path(package.__file__).parent for package in (pl, lightning_fabric)]
    torchs = [Path(sys.modules[name].__file__ or "") for name in ("torch.utils._pytree", "torch.optim.lr_scheduler")]
    texts = [text for folder in folders for file in folder.rglob("*.py") for text in strings(file)] + [
        text for file in torchs for text in strings(file)
    ]
    for known in KNOWN_WARNINGS:
        plain = known.replace("\\", "")
        assert any(plain in text for text in texts), known


def strings(file: Path) -> list[str]:
    """All strings of a file; what an f-string computes is left out."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value for part in node.values if isinstance(part, ast.Constant)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_the_order_of_scheduler_and_optimizer_is_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = LambdaLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), lambda step: 1.0)
        with pytest.raises(UserWarning, match="Detected call"):
            schedule.step()
        silence_known_warnings()
        LambdaLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), lambda step: 1.0).step()


def test_an_operation_that_is_not_deterministic_is_one_line(small, monkeypatch):
    """On the CPU few are; on CUDA adaptive pooling is, of VGG and AlexNet."""
    step = Classifier.training_step

    def writes(self, *args):
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return step(self, *args)

    monkeypatch.setattr(Classifier, "training_step", writes)
    try:
        with raises_error(ConfigError, "trainer.deterministic=true", "put_", "Set trainer.deterministic=false"):
            imgrec.fit(small("trainer.deterministic=true"), quiet=True)
    finally:
        torch.use_deterministic_algorithms(False)
