"""trainer.compile=true trains what the uncompiled network trains, and leaves the same checkpoint."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from error_parts import raises_error
from processes import run_ranks
from resumed_runs import assert_same, finish_run, kill_run
from torch._dynamo.exc import BackendCompilerFailed

import imgrec
from imgrec import config
from imgrec.config import RunConfig
from imgrec.errors import ConfigError
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.models.speed_cnn import SpeedCNN
from imgrec.train import fit
from imgrec.training.step_boundary import StepBoundary

COMPILER = os.environ.get("CXX", "g++")  # as torch chooses it
SINGLE = ["trainer.accelerator=cpu", "trainer.devices=1", "epochs=2", "name=r", "id=a", "trainer.log_every_steps=1"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"torch.compile needs a C++ compiler, and there is no {COMPILER}")
def test_a_compiled_network_trains_the_same_and_its_checkpoint_loads(small: Callable[..., RunConfig]) -> None:
    words = ("model=simple_cnn", "model.widths=[4]", "model.dense=8", "model.dense_dropout=0")
    runs = [small(*words, f"id={name}", f"trainer.compile={name == 'compiled'}".lower()) for name in ("eager", "compiled")]

    def train(rank: int) -> tuple[list[dict[str, Any]], list[int]]:
        from torch._dynamo.utils import counters

        results, graphs = [], []
        for run in runs:
            results.append(fit(run, quiet=True))
            graphs.append(counters["stats"]["unique_graphs"])
        return results, graphs

    ((eager, compiled), (before, after)) = run_ranks(1, train)[0]
    assert before == 0 < after, "graphs that were compiled"
    for column in ("train/loss", "val/loss"):
        assert compiled["last"][column] == pytest.approx(eager["last"][column], rel=1e-5)
    assert compiled["test"]["confusion"] == eager["test"]["confusion"]

    folders = [Path(run.runs_dir) / run.name / str(run.id) for run in runs]
    weights = [read_checkpoint(folder / "checkpoints/best.ckpt")["state_dict"] for folder in folders]
    assert list(weights[1]) == list(weights[0])
    assert not [key for key in weights[1] if "_orig_mod" in key]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)

    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = [imgrec.load(folder, device="cpu").probabilities(images) for folder in folders]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"trainer.compile=true is refused without {COMPILER}")
def test_the_code_of_a_batch_depends_on_its_size_alone(small: Callable[..., RunConfig]) -> None:
    """Not on the sizes before it, of which a resumed run has others: its weights would differ by roundings."""

    def train(rank: int) -> list[tuple[Any, ...]]:
        compiled: list[tuple[Any, ...]] = []

        def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
            assert not [value for value in inputs if isinstance(value, torch.SymInt)], "code for any size"
            compiled.extend(tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor) and value.dim() == 4)
            return graph.forward

        compile_with = torch.compile
        torch.compile = lambda call, **how: compile_with(call, backend=backend, **how)  # type: ignore[assignment]
        fit(small("model=simple_cnn", "model.widths=[4]", "trainer.compile=true", "batch_size=5"), quiet=True)
        return compiled

    (shapes,) = run_ranks(1, train)
    assert len({shape[0] for shape in shapes}) > 1, "a short batch"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"torch.compile needs a C++ compiler, and there is no {COMPILER}")
def test_the_gradients_of_cifar10_speed_are_rounded_no_more_by_compiled_code() -> None:
    def gradients(rank: int) -> list[list[torch.Tensor]]:
        torch.manual_seed(0)
        net = SpeedCNN(num_classes=10, channels=1, widths=[8, 16, 16], scale=1 / 9, flip_in_evaluation=True)
        images, labels = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
        net.set_from_images([images])
        found = []
        for forward, rounded in ((net, False), (net, True), (torch.compile(net), True)):
            with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
                loss = F.cross_entropy(forward(images), labels)
            found.append(list(torch.autograd.grad(loss, list(net.parameters()))))
        return found

    ((exact, eager, compiled),) = run_ranks(1, gradients)
    for true, theirs, ours in zip(exact, eager, compiled, strict=True):
        assert (ours - true).norm() <= 2 * (theirs - true).norm(), "rounded more than without a compiler"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"trainer.compile=true is refused without {COMPILER}")
def test_a_compiled_run_that_is_resumed_after_an_epoch_equals_the_unbroken_one(tmp_path: Path) -> None:
    words = ["data=digits", "data.test_share=0.8", "model=simple_cnn", "model.widths=[8,16]", "model.dense=16", "batch_size=50"]
    runs = [
        config.load(
            "train", [*words, *SINGLE, f"runs_dir={tmp_path / name}", "trainer.compile=true", "trainer.save_every_steps=2"]
        )
        for name in ("unbroken", "killed")
    ]
    unbroken = finish_run(runs[0])
    kill_run(runs[1], 10, StepBoundary, "on_before_optimizer_step")  # the second step after the short batch of the first epoch
    assert_same(finish_run(runs[1]), unbroken)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"trainer.compile=true is refused without {COMPILER}")
def test_measuring_statistics_of_batch_norm_compiles_nothing(small: Callable[..., RunConfig]) -> None:
    def train(rank: int) -> list[int]:
        from torch._dynamo.utils import counters

        compile_with = torch.compile
        torch.compile = lambda call, **how: compile_with(call, backend="eager", **how)  # type: ignore[assignment]
        graphs = []
        for images in (0, 12):
            torch._dynamo.reset()
            counters.clear()
            words = ("model=simple_cnn", "model.widths=[4]", "trainer.compile=true", f"id={images}")
            fit(small(*words, f"callbacks.batch_norm.images={images}"), quiet=True)
            graphs.append(counters["stats"]["unique_graphs"])
        return graphs

    ((without, measured),) = run_ranks(1, train)
    assert 0 < measured == without


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_without_a_compiler_the_start_is_refused(accelerator: str, small: Callable[..., RunConfig], monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("imgrec.config.start_checks.may_have_gpu", lambda: False)
    run = small("trainer.compile=true", f"trainer.accelerator={accelerator}")
    with raises_error(ConfigError, "trainer.compile=true", COMPILER, "g++", "trainer.compile=false"):
        fit(run, quiet=True)
    assert not Path(run.runs_dir).exists()


def test_a_network_that_cannot_be_compiled_is_one_line(small: Callable[..., RunConfig], monkeypatch: Any) -> None:
    """As with a GPU, where torch looks for the compiler at the first step."""

    def fail(*_: object, **__: object) -> None:
        raise BackendCompilerFailed(str, RuntimeError("no compiler\nset more"), None)

    monkeypatch.setattr("imgrec.config.start_checks.may_have_gpu", lambda: True)
    monkeypatch.setattr("imgrec.training.module.Classifier.training_step", fail)
    with raises_error(ConfigError, "trainer.compile=true", "no compiler", "trainer.compile=false"):
        fit(small(), quiet=True)
