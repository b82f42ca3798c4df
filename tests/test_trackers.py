"""What TensorBoard, W&B and MLflow show of a run: norms, pictures, histograms, hyper-parameters; nothing of it changes a bit of the training."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from error_parts import raises_error
from marks import slow_but
from PIL import Image
from resumed_runs import STEPS_PER_EPOCH, assert_same, finish_run, kill_run, load_run
from sklearn.metrics import recall_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from test_loggers import csv_points
from test_train import WHOLE, start, trained

from imgrec import config
from imgrec.config.changes import changed_keys, compared_keys
from imgrec.config.schema import RunConfig
from imgrec.errors import ConfigError
from imgrec.inference import recall_bars
from imgrec.inference.metrics import make_report
from imgrec.inference.recall_bars import MOST_BARS, draw_recall_bars, weakest_recalls
from imgrec.train import fit
from imgrec.training.callbacks import pictures
from imgrec.training.callbacks.histograms import Histograms
from imgrec.training.callbacks.history import History
from imgrec.training.callbacks.logger import CHARTS
from imgrec.training.callbacks.pictures import LEAST_SIDE, batch_picture
from imgrec.training.callbacks.steps import STEP_FIGURES, StepMetrics
from imgrec.training.config_difference import RESUMABLE_KEYS
from imgrec.training.loggers.tensorboard import ResumableTensorBoardLogger
from imgrec.training.module import Classifier

Small = Callable[..., RunConfig]
DRAWN = ("callbacks.pictures.every_epochs=1", "callbacks.histograms.every_epochs=1")
EVERY = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}


def event_content(folder: Path) -> dict[str, list[Any]]:
    """(step, content) of all that the event files hold but speeds, as it stands there: nothing is purged."""
    found: dict[str, list[Any]] = {}
    for file in sorted(folder.glob("events*")):
        events = EventAccumulator(str(file), size_guidance=EVERY, purge_orphaned_data=False).Reload()
        tags, read = events.Tags(), {"scalars": events.Scalars, "images": events.Images, "histograms": events.Histograms}
        for kind, points in {**read, "tensors": events.Tensors}.items():
            for tag in tags[kind]:
                if not tag.startswith("speed/"):
                    content = [(point.step, re.sub(r"wall_time=[^,)]*", "", str(point))) for point in points(tag)]
                    found[tag] = sorted(found.get(tag, []) + content)
        for tag, metadata in events.summary_metadata.items():
            if tag.startswith("_hparams_/session_start_info"):
                stored = HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams
                found.setdefault("hparams", []).append(sorted(stored))
    return found


def picture_size(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


@pytest.mark.parametrize("clip", slow_but(0.01, among=[0.0, 0.01]))
def test_the_norms_of_a_step_are_those_of_plain_gradient_descent(small: Small, clip: float) -> None:
    run = small(
        *("optim=gd", "batch_size=full", "optim.lr=0.1", "scheduler=constant", "augment=none", "max_device_batch=7"),
        *("id=a", "logger=csv", "trainer.log_every_steps=1", f"trainer.gradient_clip={clip}", *WHOLE),
    )
    fit(run, quiet=True)
    net, images, labels = start(run)
    gradients = torch.autograd.grad(F.cross_entropy(net(images), labels), list(net.parameters()))
    gradient, weights = (torch.cat([part.flatten() for part in parts]).norm() for parts in (gradients, net.parameters()))
    assert clip < gradient
    expected = {"gradient_norm": gradient, "weight_norm": weights, "update_ratio": 0.1 * (clip or gradient) / weights}
    points = csv_points(Path(run.runs_dir) / run.name / "a")
    for name, value in expected.items():
        assert points[f"optim/{name}"] == [(1, pytest.approx(value.item(), rel=1e-4))], name


def test_figures_on_their_way_from_a_gpu_are_logged_when_they_have_come_and_before_a_save() -> None:
    logged: list[Any] = []
    trainer: Any = SimpleNamespace(logger=SimpleNamespace(log_metrics=lambda points, step: logged.append((step, points))))
    steps = StepMetrics(history=History(Path("none"), "val/loss"))
    came = SimpleNamespace(query=lambda: False, synchronize=lambda: None)
    figures = torch.tensor([1.0, 2.0, 3.0, 4.0])
    steps._pending = [(10, 0.5, figures, came), (20, 0.25, 2 * figures, came)]  # type: ignore[list-item]
    steps.write(trainer)
    assert logged == []
    came.query = iter([True, False]).__next__
    steps.write(trainer)
    assert logged == [(10, dict(zip(STEP_FIGURES, [1.0, 2.0, 3.0, 4.0], strict=True)) | {"optim/lr": 0.5})]
    steps.write(trainer, wait=True)
    assert [(step, points["train/step_loss"], points["optim/lr"]) for step, points in logged] == [(10, 1.0, 0.5), (20, 2.0, 0.25)]


def test_a_run_with_everything_drawn_learns_the_same_bits(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = io.BytesIO()
    Image.new("RGB", (2, 3), "red").save(png, "PNG")
    for name in ("draw_confusion_matrix", "draw_recall_bars", "draw_reliability"):
        monkeypatch.setattr(pictures, name, lambda *figures, title: png.getvalue())
    words = ("epochs=2", "model=simple_cnn", "trainer.log_every_steps=1")
    off = [f"callbacks.{name}=null" for name in ("pictures", "histograms", "steps", "throughput", "console")]
    plain, _ = trained(fit, small("id=none", *words, *off))
    run = small("id=all", *words, *DRAWN, "logger=tensorboard")
    drawn, result = trained(fit, run)
    assert_same(drawn, plain)

    folder = tmp_path / "runs" / result["name"] / "all/tensorboard"
    events = EventAccumulator(str(folder), size_guidance=EVERY).Reload()
    steps = {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}
    reports = ("confusion_matrix", "recall")
    of_test = {f"test/{name}": [4] for name in (*reports, "reliability", "worst_errors")}
    assert steps == {"train/batch": [0], **{f"val/{name}": [2, 4] for name in reports}} | of_test
    (shown,) = events.Images("test/worst_errors")
    with Image.open(tmp_path / "runs" / result["name"] / "all/errors.png") as sheet:
        assert Image.open(io.BytesIO(shown.encoded_image_string)).tobytes() == sheet.convert("RGB").tobytes()
    assert {tag.partition("/")[0] for tag in events.Tags()["histograms"]} == {"weights", "weights_gradient"}
    for name in plain.keys() - {name for name in plain if "running" in name or "batches" in name}:
        assert [point.step for point in events.Histograms(f"weights/{name}")] == [2, 4]
        assert events.Histograms(f"weights_gradient/{name}")[0].histogram_value.num == plain[name].numel()
    (hyper_parameters,) = event_content(folder)["hparams"]
    assert hyper_parameters == sorted(compared_keys(run.to_dict()).keys() - RESUMABLE_KEYS)
    assert len(hyper_parameters) < 20  # of 80
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {page.title: {chart.title: list(chart.multiline.tag) for chart in page.chart} for page in layout.category}
    assert charts == CHARTS
    assert {tag for page in CHARTS.values() for tags in page.values() for tag in tags} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize(
    ("words", "changes"),
    {
        "seed=7 optim.lr=0.1 epochs=30 name=n id=4": {"seed": 7, "optim.lr": 0.1},
        "data=mnist model=lenet": {"data": "mnist", "model": "lenet"},
        "data.image_size=16": {"data.image_size": 16},  # and not model.image_size, which is ${data.image_size}
        "data=fake data.num_classes=3 callbacks.steps=null": {"data": "fake", "data.num_classes": 3, "callbacks.steps": None},
    }.items(),
)
def test_keys_that_differ_from_the_defaults(words: str, changes: dict[str, Any]) -> None:
    assert changed_keys(config.load("train", words.split()).to_dict()) == changes


def test_what_runs_differ_in_most_is_there_at_its_default_too() -> None:
    """A run at the default rate, first in TensorBoard, would hide the rates of all others."""
    run = config.load("train", ["seed=7", "model=lenet"])
    options = {"data": "digits", "augment": "light", "optim": "adam", "scheduler": "one_cycle"}
    scalars = {"optim.lr": run.optim["lr"], "batch_size": 64, "epochs": 30}
    assert compared_keys(run.to_dict()) == options | scalars | {"seed": 7, "model": "lenet"}
    own = compared_keys(run.to_dict() | {"model": {"_target_": "mine.Net", "depth": 3}})
    assert "model" not in own
    assert own["model._target_"] == "mine.Net"


def test_the_table_shows_first_what_a_run_has_changed(tmp_path: Path) -> None:
    logger = ResumableTensorBoardLogger(save_dir=str(tmp_path), name="tensorboard", version="")
    logger.log_settings({"a": 1.0, "b": "x", "c": True}, {"test/accuracy": 0.5}, 3, first={"c", "d"})
    logger.finalize("success")
    (file,) = (tmp_path / "tensorboard").glob("events*")
    events = EventAccumulator(str(file)).Reload()
    contents = [HParamsPluginData.FromString(each.plugin_data.content) for each in events.summary_metadata.values()]
    (experiment,) = [content.experiment for content in contents if content.HasField("experiment")]
    assert {info.name: info.differs for info in experiment.hparam_infos} == {"a": False, "b": False, "c": True}
    (start,) = [content.session_start_info for content in contents if content.HasField("session_start_info")]
    assert start.hparams["b"].string_value == "x"
    assert [(point.step, point.value) for point in events.Scalars("test/accuracy")] == [(3, 0.5)]


def test_an_own_option_differs_in_all_its_keys() -> None:
    tree = config.load("train", []).to_dict() | {"model": {"_target_": "mine.Net", "depth": 3}}
    assert changed_keys(tree) == {"model._target_": "mine.Net", "model.depth": 3}


def test_the_weakest_recalls_are_scikit_learns_in_order() -> None:
    rng = np.random.default_rng(0)
    classes = [f"c{number}" for number in range(60)]
    true, predicted = rng.integers(0, 59, 900), rng.integers(0, 60, 900)  # the last has no samples
    predicted = np.where(rng.random(900) < 0.6, true, predicted)
    matrix = np.zeros((60, 60), dtype=int)
    np.add.at(matrix, (true, predicted), 1)
    report = make_report(matrix, top5_hits=0, loss=0.0, classes=classes)
    expected = recall_score(true, predicted, labels=range(59), average=None)
    rows = weakest_recalls(report, 40)
    assert [row["recall"] for row in rows] == pytest.approx(np.sort(expected)[:40])
    assert [row["name"] for row in rows] == [classes[k] for k in np.argsort(expected, kind="stable")[:40]]


def test_the_bars_are_the_recalls_and_a_class_name_is_no_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, content, **options: drawn.append(figure) or content.write(b"png"))
    report = make_report([[3, 1, 0], [0, 2, 2], [0, 0, 0]], top5_hits=0, loss=0.0, classes=["$a$", "b_1", "none"])
    assert draw_recall_bars(report, title="t") == b"png"
    (axes,) = drawn[0].axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.75]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b_1", "$a$"]
    assert [text.get_text() for text in axes.texts] == ["50.0% of 4", "75.0% of 4"]
    assert "weakest 2 of 3" in axes.get_title()
    assert recall_bars.MOST_BARS == MOST_BARS


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 40)])
def test_a_batch_is_shown_image_by_image_from_its_darkest_to_its_brightest(channels: int, side: int) -> None:
    images = torch.randn(9, channels, side, side) * 3 - 1
    shown = np.asarray(batch_picture(images))
    larger = max(1, LEAST_SIDE // side)
    tile = larger * side
    for number in (0, 7, 8):
        row, column = divmod(number, 8)
        top, left = 2 + row * (tile + 2), 2 + column * (tile + 2)
        found = shown[top : top + tile : larger, left : left + tile : larger].astype(float) / 255
        image = images[number].permute(1, 2, 0).numpy()
        wanted = (image - image.min()) / (image.max() - image.min())
        assert np.abs(found - wanted).max() < 1 / 255
        assert found.shape == (side, side, 3)


def test_a_gradient_that_overflows_has_a_histogram_of_its_finite_values() -> None:
    class Recorder:
        def log_histogram(self, name: str, values: torch.Tensor, step: int) -> None:
            logged[name] = values.tolist(), step

    logged: dict[str, Any] = {}
    net = torch.nn.Linear(2, 1)
    net.weight.grad, net.bias.grad = torch.tensor([[float("inf"), 3.0]]), torch.tensor([float("nan")])
    trainer: Any = SimpleNamespace(logger=Recorder(), is_last_batch=True, current_epoch=1, global_step=7, is_global_zero=True)
    trainer.precision_plugin = SimpleNamespace()
    classifier = Classifier.__new__(Classifier)
    torch.nn.Module.__init__(classifier)
    classifier.net = net
    Histograms(every_epochs=2).on_before_optimizer_step(trainer, classifier, torch.optim.SGD(net.parameters()))
    assert logged.pop("weights_gradient/weight") == ([3.0], 8)
    assert {name: len(values) for name, (values, _) in logged.items()} == {"weights/weight": 2, "weights/bias": 1}


def test_epochs_between_pictures_are_no_negative_number(small: Small) -> None:
    for name in ("pictures", "histograms"):
        with raises_error(ConfigError, f"callbacks.{name}.every_epochs=-1", "0"):
            small(f"callbacks.{name}.every_epochs=-1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [(2 * STEPS_PER_EPOCH + 4, Classifier, "training_step"), (2, History, "on_train_epoch_end"), (1, Classifier, "test_step")],
)
def test_a_killed_run_ends_with_the_events_of_an_unbroken_one(tmp_path: Path, moment: tuple[int, Any, str]) -> None:
    outcomes = []
    for name in ("unbroken", "killed"):
        run = load_run(tmp_path / name, *DRAWN, "trainer.save_every_steps=3", pictures=True)
        if name == "killed":
            kill_run(run, *moment)
        finish_run(run)
        outcomes.append(event_content(tmp_path / name / "r/a/tensorboard"))
    assert_same(outcomes[1], outcomes[0])
    assert {"train/batch", "val/recall", "test/worst_errors", "custom_scalars__config__", "hparams"} < outcomes[0].keys()


@pytest.mark.slow
def test_wandb_and_mlflow_get_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    names = {"train/batch": 1, "val/confusion_matrix": 3, "val/recall": 3}
    names |= {f"test/{name}": 1 for name in ("confusion_matrix", "recall", "reliability", "worst_errors")}
    for logger in ("wandb", "mlflow"):
        pytest.importorskip(logger, reason=f'pip install "imgrec[{logger}]"')
        finish_run(load_run(tmp_path / logger, f"logger={logger}", *DRAWN, pictures=True))
    shown = {
        name: [picture_size(file) for file in (tmp_path / "mlflow/r/a/mlflow/artifacts").glob(f"*/artifacts/{name}/*.png")]
        for name in names
    }
    assert {name: len(sizes) for name, sizes in shown.items()} == names
    media = tmp_path / "wandb/r/a/wandb"
    sent = {name: [picture_size(file) for file in media.glob(f"offline-run-*/files/media/images/{name}_*.png")] for name in names}
    assert sent == shown
    assert not (tmp_path / "mlruns").exists()
